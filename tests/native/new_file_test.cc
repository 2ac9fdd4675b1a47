// A file that is complete or not there, where a file cannot be without a name.

#include "imageio/new_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

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
