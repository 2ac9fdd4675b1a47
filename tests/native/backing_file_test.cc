// The file that holds the pages: where it comes from, and what is written over.

#include "backing/backing_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "native/support.h"

namespace pgalloc::backing_file_test {
namespace {

using native_tests::FakeKernel;
using native_tests::pages;

std::unique_ptr<BackingFile> some_file(uint64_t page_count) {
  auto file = std::move(*BackingFile::create_memfd());
  EXPECT(file->grow(page_count * page_size()).ok());
  return file;
}

std::string contents(const BackingFile& file, FileRange range) {
  std::string bytes(range.length(), '?');
  EXPECT_EQ(
      os::kernel().pread(file.fd(), bytes.data(), bytes.size(), static_cast<off_t>(range.start)),
      static_cast<ssize_t>(bytes.size()));
  return bytes;
}

// --- Where it comes from -------------------------------------------------------------------------

// A path that is gone afterwards.
struct Path {
  Path() { EXPECT(::mkdtemp(folder.data()) != nullptr); }
  ~Path() { std::filesystem::remove_all(folder); }
  Path(const Path&) = delete;
  Path& operator=(const Path&) = delete;
  std::string folder = std::filesystem::temp_directory_path() / "pgalloc_backing_XXXXXX";
  std::string file() const { return folder + "/pages"; }
};

TEST(a_file_of_memory_knows_that_it_is) {
  const auto file = some_file(3);
  EXPECT(file->in_memory());
  EXPECT_EQ(file->size(), 3 * page_size());
  EXPECT_EQ(*file->stored_bytes(), 0u);
}

TEST(a_path_is_made_for_its_owner_or_emptied) {
  const Path path;
  {
    const auto made = BackingFile::open_path(path.file());
    EXPECT((*made)->grow(page_size()).ok());
  }
  EXPECT(std::filesystem::status(path.file()).permissions() ==
         (std::filesystem::perms::owner_read | std::filesystem::perms::owner_write));
  EXPECT_EQ(std::filesystem::file_size(path.file()), page_size());
  const auto again = BackingFile::open_path(path.file());
  EXPECT_EQ(std::filesystem::file_size(path.file()), 0u);
  EXPECT_EQ((*again)->size(), 0u);
  EXPECT_EQ(BackingFile::open_path(path.folder + "/no/pages").status().error_number(), ENOENT);
}

TEST(only_a_file_that_was_made_is_removed_when_what_follows_fails) {
  const Path path;
  std::move(*BackingFile::open_path(path.file()))->disown();
  EXPECT(!std::filesystem::exists(path.file()));
  std::ofstream(path.file()) << "x";
  std::move(*BackingFile::open_path(path.file()))->disown();
  EXPECT(std::filesystem::exists(path.file()));
}

TEST(an_adopted_descriptor_is_given_back_when_what_follows_fails) {
  const auto open = [](int fd) { return ::fcntl(fd, F_GETFD) >= 0; };
  const int fd = ::memfd_create("", MFD_CLOEXEC);
  std::move(*BackingFile::adopt(fd))->disown();
  EXPECT(open(fd));
  {
    const auto kept = std::move(*BackingFile::adopt(fd));
  }
  EXPECT(!open(fd));
  const auto own = std::move(*BackingFile::create_memfd());
  const int of_own = own->fd();
  own->disown();
  EXPECT(!open(of_own));
}

TEST(a_duplicate_is_another_descriptor_of_the_same_file) {
  const auto file = some_file(0);
  const int number = file->fd();
  {
    const auto duplicate = std::move(*BackingFile::duplicate(number));
    EXPECT(duplicate->fd() != number);
    EXPECT(duplicate->grow(page_size()).ok());
    EXPECT(duplicate->write({0, 1}, "d").ok());
  }
  EXPECT_EQ(contents(*file, {0, 1}), "d");
}

TEST(without_standard_input_no_file_gets_its_number) {
  const int input = ::dup(STDIN_FILENO);
  const int first = ::memfd_create("first", MFD_CLOEXEC);
  const Path path;
  for (const int way : {0, 1, 2}) {
    ::close(STDIN_FILENO);
    const auto file = way == 0   ? BackingFile::create_memfd()
                      : way == 1 ? BackingFile::open_path(path.file())
                                 : BackingFile::duplicate(first);
    if (EXPECT(file.ok())) EXPECT((*file)->fd() > STDERR_FILENO);
  }
  ::close(first);
  if (input >= 0) {
    EXPECT_EQ(::dup2(input, STDIN_FILENO), STDIN_FILENO);
    ::close(input);
  }
}

TEST(what_is_no_regular_file_is_refused_and_still_the_callers) {
  int ends[2];
  EXPECT(::pipe(ends) == 0);
  const auto refused = BackingFile::adopt(ends[0]);
  EXPECT(!refused.ok() && refused.status().code() == ErrorCode::kOption);
  EXPECT(::close(ends[0]) == 0);
  EXPECT(::close(ends[1]) == 0);
  EXPECT(!BackingFile::duplicate(-1).ok());
}

TEST(an_error_while_it_is_opened_leaves_nothing) {
  const Path path;
  for (const int failing : {0, 1, 2}) {
    FakeKernel fake;
    if (failing == 0) fake.calls.fstatfs = [](int, struct statfs*) { return errno = EIO, -1; };
    if (failing == 1) fake.calls.fstat = [](int, struct stat*) { return errno = EIO, -1; };
    if (failing == 2) fake.calls.ftruncate = [](int, off_t) { return errno = EIO, -1; };
    fake.begin();
    EXPECT_EQ(BackingFile::open_path(path.file()).status().error_number(), EIO);
    EXPECT(!std::filesystem::exists(path.file()));
  }
}

TEST(interruptions_are_tried_again_but_not_for_ever) {
  static int left;
  FakeKernel fake;
  fake.calls.ftruncate = [](int fd, off_t size) {
    if (left > 0) return --left, errno = EINTR, -1;
    return os::kernel().ftruncate(fd, size);
  };
  fake.begin();
  const auto file = std::move(*BackingFile::create_memfd());
  left = 99;
  EXPECT(file->grow(page_size()).ok());
  left = 100;
  EXPECT_EQ(file->grow(page_size()).error_number(), EINTR);
  EXPECT_EQ(left, 0);
}

// --- What is in it -------------------------------------------------------------------------------

TEST(committed_pages_are_stored_and_punched_ones_are_not) {
  const auto file = some_file(8);
  EXPECT(file->commit(pages(2, 5)).ok());
  EXPECT_EQ(*file->stored_bytes(), 3 * page_size());
  EXPECT_EQ(file->size(), 8 * page_size());
  EXPECT(file->write(pages(2, 5), std::string(3 * page_size(), 'x').data()).ok());
  EXPECT(file->punch(pages(3, 4)).ok());
  EXPECT_EQ(*file->stored_bytes(), 2 * page_size());
  EXPECT_EQ(contents(*file, pages(3, 4)), std::string(page_size(), '\0'));
  struct stat status{};
  EXPECT(::fstat(file->fd(), &status) == 0);
  EXPECT_EQ(static_cast<uint64_t>(status.st_size), 8 * page_size());
}

TEST(zeros_are_written_over_what_is_stored_and_nothing_else) {
  const auto file = some_file(12);
  const auto x = [](uint64_t count) { return std::string(count * page_size(), 'x'); };
  const auto zeros = [](uint64_t count) { return std::string(count * page_size(), '\0'); };
  for (const FileRange range :
       {pages(1, 11), pages(3, 9), pages(2, 4), pages(4, 6), pages(8, 12)}) {
    for (const FileRange run : {pages(2, 4), pages(8, 10)}) {
      EXPECT(file->write(run, x(2).data()).ok());
    }
    EXPECT(file->write_zeros(range).ok());
    EXPECT_EQ(*file->stored_bytes(), 4 * page_size());
    for (uint64_t page = 0; page < 12; ++page) {
      const bool written = (page >= 2 && page < 4) || (page >= 8 && page < 10);
      const bool kept = written && !range.contains(page * page_size());
      EXPECT(contents(*file, pages(page, page + 1)) == (kept ? x(1) : zeros(1)));
    }
  }
}

TEST(zeros_are_written_everywhere_where_holes_cannot_be_told) {
  for (const int answered : {0, 1}) {
    const auto file = some_file(600);
    EXPECT(file->write(pages(2, 3), std::string(page_size(), 'x').data()).ok());
    static int left;
    left = answered;
    FakeKernel fake;
    fake.calls.lseek = [](int fd, off_t offset, int whence) {
      if (left-- <= 0) return errno = EINVAL, off_t{-1};
      return os::kernel().lseek(fd, offset, whence);
    };
    fake.begin();
    EXPECT(file->write_zeros(pages(1, 599)).ok());  // more than a block
    EXPECT_EQ(*file->stored_bytes(), (answered == 0 ? 598 : 597) * page_size());
    EXPECT(contents(*file, pages(0, 600)) == std::string(600 * page_size(), '\0'));
  }
}

}  // namespace
}  // namespace pgalloc::backing_file_test
