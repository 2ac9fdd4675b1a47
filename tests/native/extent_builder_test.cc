// Which pages of a file an image stores, however their runs are found.

#include "imageio/extent_builder.h"

#include <errno.h>
#include <unistd.h>

#include <algorithm>

#include "native/rig.h"

namespace pgalloc::extent_builder_test {
namespace {

using native_tests::FakeKernel;
using native_tests::page_of;
using native_tests::pages;
using native_tests::Rig;

constexpr uint64_t kPages = 120;

// A file in which these pages are written: with their number, or with zeros.
struct File {
  explicit File(const std::vector<uint64_t>& written, const std::vector<uint64_t>& zero = {}) {
    EXPECT(rig.file->grow(kPages * page_size()).ok());
    for (const uint64_t page : written) {
      rig.fill(pages(page, page + 1), static_cast<char>(page + 1));
    }
    for (const uint64_t page : zero) rig.fill(pages(page, page + 1), '\0');
  }

  // The pages that are stored of these parts; their contents are compared.
  std::vector<uint64_t> stored(const std::vector<FileRange>& parts, bool keep_zeros = false) {
    ExtentBuilder builder(*rig.file, *rig.chunks, keep_zeros);
    EXPECT(builder.build(parts, extent).ok());
    EXPECT_EQ(extent.head.range, (FileRange{parts.front().start, parts.back().end}));
    std::vector<uint64_t> found;
    const char* at = extent.buffer.data() + page_size();
    extent.head.map.visit_runs([&](size_t first, size_t count) {
      for (size_t i = first; i < first + count; ++i, at += page_size()) {
        const uint64_t page = page_of(extent.head.range.start) + i;
        found.push_back(page);
        EXPECT(std::string(at, page_size()) == rig.contents(pages(page, page + 1)));
      }
    });
    return found;
  }

  Rig rig;
  ExtentBuilder::Extent extent;
};

using Pages = std::vector<uint64_t>;

TEST(only_what_is_in_the_parts_is_stored) {
  File file({0, 1, 2, 5, 6, 9, 20, 21, 22});
  EXPECT_EQ(file.stored({pages(0, kPages)}), (Pages{0, 1, 2, 5, 6, 9, 20, 21, 22}));
  EXPECT_EQ(file.stored({pages(1, 6)}), (Pages{1, 2, 5}));
  EXPECT_EQ(file.stored({pages(2, 3), pages(6, 21)}), (Pages{2, 6, 9, 20}));
  EXPECT_EQ(file.stored({pages(3, 5)}), Pages{});
  EXPECT_EQ(file.stored({pages(30, 40)}), Pages{});  // behind all data
  EXPECT_EQ(file.extent.zero_pages, 0u);
}

TEST(pages_of_zeros_are_left_out_and_counted) {
  File file({0, 1, 7}, {2, 3, 9});
  EXPECT_EQ(file.stored({pages(0, 10)}), (Pages{0, 1, 7}));
  EXPECT_EQ(file.extent.zero_pages, 3u);
  EXPECT_EQ(file.stored({pages(0, 3)}), (Pages{0, 1}));
  EXPECT_EQ(file.extent.zero_pages, 1u);
  EXPECT_EQ(file.stored({pages(0, 10)}, /*keep_zeros=*/true), (Pages{0, 1, 2, 3, 7, 9}));
  EXPECT_EQ(file.extent.zero_pages, 0u);
}

TEST(one_byte_keeps_a_page) {
  for (const size_t at : {size_t{0}, size_t{15}, size_t{16}, page_size() - 1}) {
    File file({}, {4});
    EXPECT(os::kernel().pwrite(file.rig.file->fd(), "x", 1,
                               static_cast<off_t>(4 * page_size() + at)) == 1);
    EXPECT_EQ(file.stored({pages(0, 8)}), Pages{4});
  }
}

TEST(a_run_may_be_longer_than_a_block) {
  Pages all;
  for (uint64_t page = 0; page < kPages; ++page) all.push_back(page);
  File file(all);
  EXPECT_EQ(file.stored({pages(0, kPages)}), all);
  EXPECT_EQ(file.stored({pages(1, kPages)}), Pages(all.begin() + 1, all.end()));
}

// Calls of lseek, which may fail in the end.
class Seeks {
 public:
  explicit Seeks(int fails_after = INT32_MAX, int error = EINVAL) {
    made = 0;
    most = fails_after;
    error_number = error;
    fake_.calls.lseek = [](int fd, off_t offset, int whence) {
      if (++made > most) return errno = error_number, off_t{-1};
      return os::kernel().lseek(fd, offset, whence);
    };
    fake_.begin();
  }
  static inline int made;
  static inline int most;
  static inline int error_number;

 private:
  FakeKernel fake_;
};

TEST(after_sixteen_runs_the_rest_is_read_as_it_comes) {
  for (const uint64_t runs : {15, 16, 17, 40}) {
    Pages written;
    for (uint64_t i = 0; i < runs; ++i) written.push_back(2 * i);
    File file(written, {101, 103});
    const Seeks seeks;
    EXPECT_EQ(file.stored({pages(0, 2 * runs - 1)}), written);
    EXPECT_EQ(Seeks::made, 2 * std::min<int>(static_cast<int>(runs), 16));
    EXPECT_EQ(file.stored({pages(0, kPages)}), written);
    // Holes that were read are no pages of zeros, where the kernel can tell.
    const CommitProbe probe(*file.rig.file, *file.rig.chunks);
    if (probe.count(pages(0, 1))) EXPECT_EQ(file.extent.zero_pages, 2u);
  }
}

TEST(where_runs_cannot_be_asked_for_everything_is_read) {
  File file({0, 1, 7}, {3});
  for (const int answered : {0, 1, 2, 3}) {
    const Seeks seeks(answered);
    EXPECT_EQ(file.stored({pages(0, 10)}), (Pages{0, 1, 7}));
  }
}

TEST(a_hole_that_begins_in_a_page_leaves_it_whole) {
  File file({2, 3});
  FakeKernel fake;
  fake.calls.lseek = [](int, off_t offset, int whence) {  // data from 2 1/2 to 3 1/2
    const auto half = static_cast<off_t>(page_size() / 2);
    const off_t data = 5 * half;
    const off_t hole = 7 * half;
    if (whence == SEEK_HOLE) return offset < hole ? hole : offset;
    if (offset >= hole) return errno = ENXIO, off_t{-1};
    return std::max(offset, data);
  };
  fake.begin();
  EXPECT_EQ(file.stored({pages(0, 10)}), (Pages{2, 3}));
  EXPECT_EQ(file.stored({pages(3, 10)}), Pages{3});
  EXPECT_EQ(file.stored({pages(0, 3)}), Pages{2});
}

TEST(a_file_that_was_cut_off_is_an_error) {
  File file({0, 1, 7});
  const Seeks seeks(0);
  native_tests::FakeKernel fake;
  fake.calls.pread = [](int fd, void* data, size_t size, off_t offset) {
    const auto end = static_cast<off_t>(7 * page_size());
    if (offset >= end) return ssize_t{0};
    return ::pread(fd, data, std::min(size, static_cast<size_t>(end - offset)), offset);
  };
  fake.begin();
  ExtentBuilder builder(*file.rig.file, *file.rig.chunks, false);
  const FileRange parts[] = {pages(0, 8)};
  const Status status = builder.build(parts, file.extent);
  EXPECT(!status.ok() && status.error_number() == EIO);
}

}  // namespace
}  // namespace pgalloc::extent_builder_test
