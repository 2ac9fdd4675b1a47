// The ordered set does what a naive model does, and what the model does not look at.

#include "segment/segment_set.h"

#include <set>

#include "native/segment_model.h"
#include "segment/range_set.h"

namespace pgalloc::segment_set_test {
namespace {

using native_tests::pages;

TEST(random_operations_equal_the_model_even_when_memory_runs_out) {
  std::string difference;
  try {
    native_tests::compare_segment_sets(2'000, 20'000, 1, [](const char*) {});
  } catch (const native_tests::SegmentDifference& found) {
    difference = found.what();
  }
  EXPECT_EQ(difference, "");
}

TEST(what_is_exchanged_brings_its_nodes_along) {
  RangeSet many;
  RangeSet few;
  for (uint64_t i = 0; i < 500; ++i) many.insert(pages(2 * i, 2 * i + 1), {});
  few.insert(pages(0, 1), {});
  const size_t bytes_of_many = many.memory_bytes();
  const size_t bytes_of_few = few.memory_bytes();
  EXPECT(bytes_of_many > bytes_of_few);
  many.swap(few);
  EXPECT_EQ(few.memory_bytes(), bytes_of_many);
  EXPECT_EQ(many.memory_bytes(), bytes_of_few);
  EXPECT_EQ(few.size(), 500u);
  EXPECT_EQ(many.size(), 1u);
  EXPECT_EQ(few.verify(), std::nullopt);
  EXPECT_EQ(many.verify(), std::nullopt);
}

TEST(a_set_that_shrinks_in_any_order_has_its_nodes_for_later) {
  constexpr uint64_t kSegments = 5'000;
  using native_tests::UsageTraits;
  segment::SegmentSet<UsageTraits> set;
  const auto place = [](int order, uint64_t i) {
    if (order == 0) return i;
    return order == 1 ? kSegments - 1 - i : i * 1'777 % kSegments;
  };
  size_t bytes_max = 0;
  for (int round = 0; round < 9; ++round) {
    for (uint64_t i = 0; i < kSegments; ++i) {
      const uint64_t at = place(round / 3, i);
      set.insert(pages(2 * at, 2 * at + 1), {});
    }
    EXPECT_EQ(set.verify(), std::nullopt);
    EXPECT_EQ(set.size(), kSegments);
    if (round == 0) bytes_max = 3 * set.memory_bytes();  // nodes are half full at least
    EXPECT(set.memory_bytes() <= bytes_max);
    for (uint64_t i = 0; i < kSegments; ++i) {
      const uint64_t at = place(round % 3, i);
      const auto segment = set.find(at * 2 * page_size());
      if (EXPECT(segment.ok())) set.remove(segment);
      if (i % 200 == 0) EXPECT_EQ(set.verify(), std::nullopt);
    }
    EXPECT(set.empty());
  }
}

// Removes segments of many nodes at once.
TEST(a_range_leaves_what_is_outside_of_it) {
  constexpr uint64_t kSegments = 400;  // of three pages, every four
  for (uint64_t first = 0; first < 40; ++first) {
    for (const uint64_t count : {1, 5, 31, 32, 33, 64, 100, 200, 350}) {
      RangeSet set;
      for (uint64_t i = 0; i < kSegments; ++i) set.insert(pages(4 * i, 4 * i + 3), {});
      // With a third of the first one, and of the last.
      const FileRange range = pages(4 * first + 1, 4 * (first + count) + 1);
      set.remove_range(range);
      EXPECT_EQ(set.verify(), std::nullopt);
      EXPECT_EQ(set.size(), kSegments - count + 1);
      EXPECT(set.is_empty_range(range));
      EXPECT_EQ(set.span_of(pages(0, 4 * first + 1)), (3 * first + 1) * page_size());
      EXPECT_EQ(set.span(), (3 * (kSegments - count)) * page_size());
    }
  }
}

TEST(a_segment_that_goes_leaves_the_gap_between_its_neighbours) {
  constexpr uint64_t kSegments = 2'000;
  using native_tests::UsageTraits;
  for (const uint64_t step : {uint64_t{1}, kSegments - 1, uint64_t{777}, uint64_t{31}}) {
    segment::SegmentSet<UsageTraits> set;
    std::set<uint64_t> model;
    for (uint64_t i = 0; i < kSegments; ++i) {
      set.insert(pages(2 * i, 2 * i + 1), {});
      model.insert(i);
    }
    for (uint64_t i = 0, at = 0; i < kSegments; ++i, at = (at + step) % kSegments) {
      const auto here = model.find(at);
      if (!EXPECT(here != model.end())) return;
      const auto next = std::next(here);
      const uint64_t start = here == model.begin() ? 0 : 2 * *std::prev(here) + 1;
      const FileRange gap = set.remove(set.find(2 * at * page_size())).range();
      EXPECT_EQ(gap.start, start * page_size());
      if (next != model.end()) EXPECT_EQ(gap.end, 2 * *next * page_size());
      model.erase(here);
    }
    EXPECT(set.empty());
  }
}

}  // namespace
}  // namespace pgalloc::segment_set_test
