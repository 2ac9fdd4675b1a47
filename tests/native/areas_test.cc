// Areas: how long they are, and which sizes of pages they are for.

#include "pages/areas.h"

#include "native/support.h"

namespace pgalloc::areas_test {
namespace {

TEST(an_area_is_a_chunk_or_a_sixteenth_of_a_small_file) {
  EXPECT_EQ(Areas(kMaxOffset).area_bytes(), kChunkSize);
  EXPECT_EQ(Areas(16 * kChunkSize).area_bytes(), kChunkSize);
  EXPECT_EQ(Areas(15 * kChunkSize).area_bytes(), kChunkSize / 2);
  EXPECT_EQ(Areas(64 * huge_page_size()).area_bytes(), 4 * huge_page_size());
  EXPECT_EQ(Areas(page_size()).area_bytes(), huge_page_size());
}

TEST(all_are_small_until_they_are_told_otherwise) {
  Areas areas(64 * huge_page_size());
  const uint64_t area = areas.area_bytes();
  EXPECT(!areas.has_huge());
  EXPECT(areas.are_all({0, areas.capacity()}, PageSize::kSmall));
  areas.set({area + 1, 3 * area}, PageSize::kHuge);
  EXPECT(areas.has_huge());
  EXPECT(areas.at(area - 1) == PageSize::kSmall && areas.at(area) == PageSize::kHuge);
  EXPECT(areas.at(3 * area - 1) == PageSize::kHuge && areas.at(3 * area) == PageSize::kSmall);
  EXPECT(areas.are_all({area, 3 * area}, PageSize::kHuge));
  EXPECT(!areas.are_all({area, 3 * area + 1}, PageSize::kHuge));
  EXPECT(!areas.are_all({0, area + 1}, PageSize::kSmall));
  EXPECT_EQ(areas.around({area + 5, area + 6}), (FileRange{area, 2 * area}));
  areas.set({0, areas.capacity()}, PageSize::kSmall);
  EXPECT(!areas.has_huge());
}

TEST(a_range_is_visited_in_parts_of_one_size) {
  Areas areas(64 * huge_page_size());
  const uint64_t area = areas.area_bytes();
  std::vector<std::pair<FileRange, PageSize>> parts;
  const auto collect = [&](FileRange part, PageSize size) { parts.emplace_back(part, size); };
  areas.visit({1, 6 * area + 7}, collect);
  EXPECT(parts == (decltype(parts){{{1, 6 * area + 7}, PageSize::kSmall}}));
  areas.set({2 * area, 4 * area}, PageSize::kHuge);
  parts.clear();
  areas.visit({1, 6 * area + 7}, collect);
  EXPECT(parts == (decltype(parts){{{1, 2 * area}, PageSize::kSmall},
                                   {{2 * area, 4 * area}, PageSize::kHuge},
                                   {{4 * area, 6 * area + 7}, PageSize::kSmall}}));
}

TEST(the_last_area_may_be_shorter) {
  const uint64_t capacity = 67 * huge_page_size() + page_size();
  Areas areas(capacity);
  areas.set({capacity - page_size(), capacity}, PageSize::kHuge);
  EXPECT_EQ(areas.around({capacity - 1, capacity}).end, capacity);
  EXPECT(areas.at(capacity - 1) == PageSize::kHuge && areas.at(0) == PageSize::kSmall);
}

}  // namespace
}  // namespace pgalloc::areas_test
