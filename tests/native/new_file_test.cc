// A file that is complete or not there, where a file cannot be without a name.

#include "imageio/new_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/stat.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "imageio/image_sink.h"
#include "native/support.h"
#include "sharing/forks.h"

namespace pgalloc::new_file_test {
namespace {

using native_tests::FakeKernel;

class Folder {
 public:
  Folder() {
    std::string name = std::filesystem::temp_directory_path() / "pgalloc_new_file_XXXXXX";
    path_ = ::mkdtemp(name.data());
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::string path(const char* name) const { return path_ / name; }
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) {
      names.push_back(entry.path().filename());
    }
    return names;
  }

 private:
  std::filesystem::path path_;
};

// A kernel whose file systems know no files without a name.
void without_unnamed_files(FakeKernel& fake) {
  fake.calls.open = [](const char* path, int flags, mode_t mode) {
    if ((flags & O_TMPFILE) == O_TMPFILE) return errno = EOPNOTSUPP, -1;
    return os::kernel().open(path, flags, mode);
  };
  fake.begin();
}

TEST(a_temporary_name_is_gone_afterwards) {
  const Folder folder;
  FakeKernel fake;
  without_unnamed_files(fake);
  {
    const auto given_up = NewFile::create(folder.path("image"));
    EXPECT_EQ(folder.names().size(), 1u);
  }
  EXPECT(folder.names().empty());
  {
    const auto published = NewFile::create(folder.path("image"));
    EXPECT((*published)->publish().ok());
  }
  EXPECT_EQ(folder.names(), std::vector<std::string>{"image"});
}

// A kernel that knows no files without a name, in a folder where the first names are taken.
struct Crowded {
  explicit Crowded(int taken_names) {
    taken = taken_names;
    tried = 0;
    kernel.calls.open = [](const char* path, int flags, mode_t mode) {
      if ((flags & O_TMPFILE) == O_TMPFILE) return errno = EISDIR, -1;
      if ((flags & O_EXCL) != 0 && ++tried <= taken) return errno = EEXIST, -1;
      return os::kernel().open(path, flags, mode);
    };
    kernel.begin();
  }
  FakeKernel kernel;
  static inline int taken;
  static inline int tried;
};

TEST(another_name_is_tried_a_hundred_times) {
  const Folder folder;
  {
    const Crowded crowded(99);
    EXPECT(NewFile::create(folder.path("image")).ok());
    EXPECT_EQ(Crowded::tried, 100);
  }
  const Crowded crowded(100);
  const auto file = NewFile::create(folder.path("image"));
  EXPECT(!file.ok() && file.status().error_number() == EEXIST);
  EXPECT_EQ(Crowded::tried, 100);
}

TEST(a_name_for_the_file_is_tried_a_hundred_times) {
  static int taken;
  static int tried;
  for (const int names : {99, 100}) {
    taken = names;
    tried = 0;
    const Folder folder;
    auto file = NewFile::create(folder.path("image"));
    FakeKernel fake;
    fake.calls.link_descriptor = [](int fd, const char* path) {
      if (++tried <= taken) return errno = EEXIST, -1;
      return os::kernel().link_descriptor(fd, path);
    };
    fake.begin();
    const Status status = (*file)->publish();
    if (tried < 100) continue;  // no files without a name here
    EXPECT_EQ(status.ok(), names == 99);
    EXPECT_EQ(folder.names().size(), names == 99 ? 1u : 0u);
    EXPECT_EQ(tried, 100);
  }
}

TEST(another_error_is_told_at_once) {
  const Folder folder;
  static int error;
  static int tried;
  FakeKernel fake;
  fake.calls.open = [](const char*, int flags, mode_t) {
    tried += (flags & O_EXCL) != 0;
    return errno = (flags & O_TMPFILE) == O_TMPFILE ? error : EACCES, -1;
  };
  fake.begin();
  for (const int unnamed : {EOPNOTSUPP, EISDIR, EINVAL, ENOENT}) {
    error = unnamed;
    tried = 0;
    EXPECT_EQ(NewFile::create(folder.path("image")).status().error_number(), EACCES);
    EXPECT_EQ(tried, 1);
  }
  error = EMFILE;
  tried = 0;
  EXPECT_EQ(NewFile::create(folder.path("image")).status().error_number(), EMFILE);
  EXPECT_EQ(tried, 0);
}

TEST(without_standard_input_a_file_may_get_its_number) {
  static std::vector<int> closed;
  closed.clear();
  for (const bool unnamed : {true, false}) {
    FakeKernel fake;
    if (unnamed) {
      fake.calls.open = [](const char*, int flags, mode_t) {
        return errno = EIO, (flags & O_TMPFILE) == O_TMPFILE ? 0 : -1;
      };
    } else {
      fake.calls.open = [](const char*, int flags, mode_t) {
        return (flags & O_TMPFILE) == O_TMPFILE ? (errno = ENOENT, -1) : 0;
      };
    }
    fake.calls.unlink = [](const char*) { return 0; };
    fake.calls.close = [](int fd) { return closed.push_back(fd), 0; };
    fake.begin();
    EXPECT(NewFile::create("image").ok());
  }
  EXPECT_EQ(closed, (std::vector<int>{0, 0}));
}

TEST(the_file_is_made_beside_the_name_it_will_have) {
  static std::vector<std::string> opened;
  FakeKernel fake;
  fake.calls.open = [](const char* path, int, mode_t) {
    opened.emplace_back(path);
    return errno = ENOENT, -1;
  };
  fake.begin();
  const std::string long_name(255, 'n');
  for (const auto& [path, folder] : {std::pair<std::string, std::string>{"image", "."},
                                     {"/image", "/"},
                                     {"/a/b/image", "/a/b"},
                                     {"a/" + long_name, "a"}}) {
    opened.clear();
    EXPECT(!NewFile::create(path).ok());
    EXPECT_EQ(opened.size(), 2u);
    EXPECT_EQ(opened[0], folder);
    const std::filesystem::path named = opened[1];
    EXPECT_EQ(named.parent_path(), folder);
    EXPECT(named.filename().string().size() <= 255);
    EXPECT_EQ(named.extension(), ".tmp");
    EXPECT_EQ(named.filename().string().front(), '.');
  }
}

TEST(what_cannot_be_replaced_is_told_before_a_file_is_made) {
  static uint64_t attributes;
  FakeKernel fake;
  fake.calls.lstatx = [](const char* path, struct statx* out) {
    const int result = os::kernel().lstatx(path, out);
    out->stx_attributes |= attributes;
    return result;
  };
  fake.calls.open = [](const char*, int, mode_t) -> int {
    native_tests::failed(__FILE__, __LINE__, "open");
    return -1;
  };
  fake.begin();
  const Folder folder;
  std::ofstream(folder.path("image")) << "old";
  EXPECT_EQ(NewFile::create(folder.path(".")).status().error_number(), EISDIR);
  EXPECT(NewFile::create("/dev/null").status().code() == ErrorCode::kOption);
  for (const auto& [attribute, error] : {std::pair<uint64_t, int>{STATX_ATTR_MOUNT_ROOT, EBUSY},
                                         {STATX_ATTR_IMMUTABLE, EPERM},
                                         {STATX_ATTR_APPEND, EPERM}}) {
    attributes = attribute;
    EXPECT_EQ(NewFile::create(folder.path("image")).status().error_number(), error);
  }
}

mode_t mode_of(const std::string& path) {
  struct stat status{};
  EXPECT(::stat(path.c_str(), &status) == 0);
  return status.st_mode & 07777;
}

TEST(what_may_not_be_handed_on_is_left_out) {
  static int calls;
  static int refused;
  static int error;
  FakeKernel fake;
  fake.calls.fchown = [](int, uid_t, gid_t) {
    return ++calls <= refused ? (errno = error, -1) : 0;
  };
  fake.begin();
  for (const int how : {EPERM, EINVAL, EIO}) {
    for (const auto& [refusals, mode] : {std::pair<int, mode_t>{0, 0664}, {1, 0664}, {2, 0604}}) {
      const Folder folder;
      std::ofstream(folder.path("image")) << "old";
      EXPECT(::chmod(folder.path("image").c_str(), 0664) == 0);
      calls = 0;
      refused = refusals;
      error = how;
      auto file = NewFile::create(folder.path("image"));
      EXPECT_EQ(file.ok(), refusals == 0 || how != EIO);
      if (!file.ok()) continue;
      EXPECT_EQ(calls, refusals == 0 ? 1 : 2);
      EXPECT((*file)->publish().ok());
      EXPECT_EQ(mode_of(folder.path("image")), mode);
    }
  }
}

TEST(a_file_system_without_access_control_lists_has_none_to_hand_on) {
  static int error;
  FakeKernel fake;
  fake.calls.lgetxattr = [](const char*, const char*, void*, size_t) -> ssize_t {
    return errno = error, -1;
  };
  fake.calls.fremovexattr = [](int, const char*) { return errno = error, -1; };
  fake.begin();
  for (const int how : {ENODATA, EOPNOTSUPP, ENOSYS, EIO}) {
    const Folder folder;
    std::ofstream(folder.path("image")) << "old";
    error = how;
    EXPECT_EQ(NewFile::create(folder.path("image")).ok(), how != EIO);
  }
}

TEST(without_proc_a_file_has_a_name_from_the_beginning) {
  FakeKernel fake;
  fake.calls.lstat = [](const char*, struct stat*) { return errno = ENOENT, -1; };
  fake.begin();
  const Folder folder;
  auto file = NewFile::create(folder.path("image"));
  EXPECT_EQ(folder.names().size(), 1u);
  EXPECT((*file)->publish().ok());
  EXPECT_EQ(folder.names(), std::vector<std::string>{"image"});
}

TEST(what_could_not_be_published_leaves_nothing) {
  const Folder folder;
  for (const char* call : {"fsync", "rename", "folder"}) {
    std::ofstream(folder.path("image")) << "old";
    auto file = NewFile::create(folder.path("image"));
    FakeKernel fake;
    const std::string failing = call;
    if (failing == "fsync") fake.calls.fsync = [](int) { return errno = EIO, -1; };
    if (failing == "rename") {
      fake.calls.rename = [](const char*, const char*) { return errno = EIO, -1; };
    }
    if (failing == "folder") {
      fake.calls.open = [](const char*, int, mode_t) { return errno = EIO, -1; };
    }
    fake.begin();
    const Status status = (*file)->publish();
    EXPECT(!status.ok() && status.error_number() == EIO);
    (*file).reset();
    EXPECT_EQ(folder.names(), std::vector<std::string>{"image"});
    EXPECT_EQ(std::filesystem::file_size(folder.path("image")), 3u);
  }
}

// A program may close descriptors that are not its own, and get the number for a file of its own.
TEST(a_file_that_got_the_number_is_neither_written_nor_published_nor_closed) {
  const Folder folder;
  auto file = std::move(*NewFile::create(folder.path("image")));
  NewFile& written = *file;
  const int number = file->file().fd();
  auto sink = std::make_unique<FileSink>(std::move(file));
  EXPECT(sink->write(0, std::string("ours")).ok());
  const int others = ::open(folder.path("others").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
  EXPECT_EQ(::dup2(others, number), number);
  EXPECT_EQ(sink->write(4, std::string("more")).error_number(), EBADF);
  EXPECT_EQ(written.publish().error_number(), EBADF);
  EXPECT_EQ(folder.names(), std::vector<std::string>{"others"});
  EXPECT_EQ(std::filesystem::file_size(folder.path("others")), 0u);
  sink.reset();
  EXPECT_EQ(::close(number), 0);
  EXPECT_EQ(::close(others), 0);
}

TEST(a_forked_child_leaves_the_name_of_its_parent_alone) {
  Forks::install();  // they tell a forked child that it is one
  const Folder folder;
  FakeKernel fake;
  without_unnamed_files(fake);
  auto file = NewFile::create(folder.path("image"));
  const pid_t child = ::fork();
  if (child == 0) {
    (*file).reset();
    ::_exit(0);
  }
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(folder.names().size(), 1u);
  EXPECT((*file)->publish().ok());
  EXPECT_EQ(folder.names(), std::vector<std::string>{"image"});
}

}  // namespace
}  // namespace pgalloc::new_file_test
