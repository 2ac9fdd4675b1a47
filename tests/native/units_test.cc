#include "base/units.h"

#include "native/support.h"

namespace pgalloc::units_test {
namespace {

TEST(alignment) {
  EXPECT(is_aligned(0, 4096));
  EXPECT(is_aligned(8192, 4096));
  EXPECT(!is_aligned(8191, 4096));
  EXPECT_EQ(align_down(8191, 4096), 4096u);
  EXPECT_EQ(align_down(8192, 4096), 8192u);
  EXPECT_EQ(align_up(0, 4096), 0u);
  EXPECT_EQ(align_up(1, 4096), 4096u);
  EXPECT_EQ(align_up(4096, 4096), 4096u);
  EXPECT_EQ(align_up(UINT64_MAX - 4095, 4096), UINT64_MAX - 4095);
}

TEST(sizes_are_powers_of_two_that_contain_each_other) {
  for (const uint64_t size : {page_size(), huge_page_size(), kChunkSize}) {
    EXPECT_EQ(size & (size - 1), 0u);
  }
  EXPECT(is_aligned(huge_page_size(), page_size()));
  EXPECT(is_aligned(kChunkSize, huge_page_size()));
  EXPECT_EQ(kMaxOffset, uint64_t{INT64_MAX});
  EXPECT_EQ(huge_page_size_of(4096), uint64_t{2} << 20);
  EXPECT_EQ(huge_page_size_of(16384), uint64_t{32} << 20);
  EXPECT_EQ(huge_page_size_of(65536), uint64_t{512} << 20);
}

TEST(ranges_are_half_open) {
  const FileRange range{10, 20};
  EXPECT_EQ(range.length(), 10u);
  EXPECT(!range.contains(9));
  EXPECT(range.contains(10));
  EXPECT(range.contains(19));
  EXPECT(!range.contains(20));
  EXPECT((FileRange{10, 10}.empty()));
  EXPECT((FileRange{11, 10}.empty()));
  EXPECT(!range.empty());
}

// Against what the definition says of each byte.
TEST(overlap_superset_and_intersection_of_all_small_ranges) {
  constexpr uint64_t kEnd = 6;
  std::vector<FileRange> all;
  for (uint64_t start = 0; start <= kEnd; ++start) {
    for (uint64_t end = start; end <= kEnd; ++end) all.push_back({start, end});
  }
  for (const FileRange& a : all) {
    for (const FileRange& b : all) {
      uint64_t common = 0;
      for (uint64_t byte = 0; byte < kEnd; ++byte) common += a.contains(byte) && b.contains(byte);
      EXPECT_EQ(a.intersect(b).length(), common);
      if (common > 0) EXPECT(a.is_superset_of(a.intersect(b)) && b.is_superset_of(a.intersect(b)));
      if (!a.empty() && !b.empty()) {
        EXPECT_EQ(a.overlaps(b), common > 0);
        EXPECT_EQ(a.is_superset_of(b), common == b.length());
      }
    }
  }
}

}  // namespace
}  // namespace pgalloc::units_test
