// Rows B4 to B10, against a search through all places of small files.

#include "pages/placement.h"

#include <algorithm>

#include "native/support.h"

namespace pgalloc::placement_test {
namespace {

using native_tests::page_of;
using native_tests::Random;
using native_tests::random_pages;

using Place = std::pair<FileRange, uint64_t>;  // and the size of the file

struct Reference {
  std::vector<bool> used;  // page by page
  PlacementRequest request;

  uint64_t end_of_used() const {
    const auto last = std::find(used.rbegin(), used.rend(), true);
    return (used.rend() - last) * page_size();
  }
  bool is_free(FileRange range) const {
    for (uint64_t i = page_of(range.start); i < page_of(range.end) && i < used.size(); ++i) {
      if (used[i]) return false;
    }
    return true;
  }
  std::optional<Place> at(uint64_t start, uint64_t size) const {
    if (!is_aligned(start, request.alignment)) return std::nullopt;
    const FileRange range{start, start + request.length};
    if (range.end > request.capacity || !is_free(range)) return std::nullopt;
    return Place{range, size};
  }
  std::optional<Place> bottom_up() const {
    for (uint64_t start = 0; start + request.length <= request.capacity; start += page_size()) {
      const uint64_t end = start + request.length;
      const uint64_t grown = std::min(align_up(end, kChunkSize), request.capacity);
      if (const auto place = at(start, end <= request.file_size ? request.file_size : grown)) {
        return place;
      }
    }
    return std::nullopt;
  }
  std::optional<Place> top_down() const {
    for (uint64_t end = request.file_size; end >= request.length; end -= page_size()) {
      if (const auto place = at(end - request.length, request.file_size)) return place;
    }
    for (uint64_t size = request.file_size; size < request.capacity;) {
      size = std::min(size == 0 ? kChunkSize : 2 * size, request.capacity);
      if (size < request.length) continue;
      const uint64_t start = align_down(size - request.length, request.alignment);
      if (start < end_of_used()) continue;
      if (const auto place = at(start, size)) return place;
    }
    return std::nullopt;
  }
};

// Files of at most `page_count` pages, of which random ranges are used.
void compare(uint64_t seed, uint64_t page_count, uint64_t longest, std::vector<uint64_t> lengths,
             std::vector<uint64_t> alignments) {
  Random random(seed);
  UsageSet usage;
  Reference reference;
  const uint64_t file_pages = random.between(1, page_count);
  reference.used.resize(file_pages);
  for (uint64_t i = random.below(20); i > 0; --i) {
    const FileRange range = random_pages(random, file_pages, longest);
    if (!usage.try_insert(range, PageUse{static_cast<uint32_t>(i), 0, MemoryKind::kAnonymous})) {
      continue;
    }
    std::fill(reference.used.begin() + page_of(range.start),
              reference.used.begin() + page_of(range.end), true);
  }
  for (int i = 0; i < 20; ++i) {
    PlacementRequest request;
    request.length = lengths[random.below(lengths.size())] * page_size();
    request.alignment = alignments[random.below(alignments.size())] * page_size();
    request.file_size = random.one_in(10) && usage.empty() ? 0 : file_pages * page_size();
    request.capacity = random.between(file_pages, page_count) * page_size();
    reference.request = request;
    for (const Direction direction : {Direction::kBottomUp, Direction::kTopDown}) {
      request.direction = direction;
      const auto found = find_place(usage, request);
      const auto expected =
          direction == Direction::kBottomUp ? reference.bottom_up() : reference.top_down();
      EXPECT_EQ(found ? std::optional<Place>({found->range, found->file_size}) : std::nullopt,
                expected);
      if (found) EXPECT(found->gap.range().is_superset_of(found->range));
    }
  }
}

TEST(pages_equal_a_search_through_all_places) {
  for (uint64_t seed = 0; seed < 300 && native_tests::failures == 0; ++seed) {
    compare(seed, 100, 12, {1, 2, 3, 5, 8, 30, 120}, {1, 2, 4, 16});
  }
}

TEST(huge_pages_equal_a_search_through_all_places) {
  const uint64_t huge = page_of(huge_page_size());
  for (uint64_t seed = 0; seed < 10 && native_tests::failures == 0; ++seed) {
    compare(seed, 8 * huge, 2 * huge, {1, huge - 1, huge, huge + 1, 3 * huge}, {1, huge});
  }
}

// The same in files of which some areas are for huge pages, against a search through all places.
struct AreaReference {
  const UsageSet& usage;
  const Areas& areas;
  PageSize size;
  PlacementRequest request;
  uint64_t whole = 0;  // bytes that must be free

  bool accepts(FileRange range, bool change) const {
    for (uint64_t start = align_down(range.start, areas.area_bytes()); start < range.end;
         start += areas.area_bytes()) {
      const FileRange area{start, std::min(start + areas.area_bytes(), areas.capacity())};
      if (areas.at(start) != size && !(change && usage.is_empty_range(area))) return false;
    }
    return true;
  }
  std::optional<Place> at(uint64_t start, uint64_t file_size, bool change) const {
    const FileRange range{start, start + whole};
    if (range.end > request.capacity || !usage.is_empty_range(range)) return std::nullopt;
    if (!accepts(range, change)) return std::nullopt;
    return Place{{start, start + request.length}, file_size};
  }
  std::optional<Place> bottom_up(bool change) const {
    for (uint64_t start = 0; start + whole <= request.capacity; start += request.alignment) {
      const bool grows = start + whole > request.file_size;
      const uint64_t grown = std::min(align_up(start + whole, kChunkSize), request.capacity);
      if (auto place = at(start, grows ? grown : request.file_size, change)) return place;
    }
    return std::nullopt;
  }
  std::optional<Place> top_down(bool change) const {
    if (request.file_size >= whole) {
      uint64_t start = align_down(request.file_size - whole, request.alignment);
      while (true) {
        if (auto place = at(start, request.file_size, change)) return place;
        if (start == 0) break;
        start -= request.alignment;
      }
    }
    uint64_t size = request.file_size;
    while (size < request.capacity) {
      size = std::min(size == 0 ? kChunkSize : 2 * size, request.capacity);
      if (size < whole) continue;
      const uint64_t start = align_down(size - whole, request.alignment);
      if (!accepts({start, areas.capacity()}, change)) continue;
      if (!usage.is_empty_range({start, UINT64_MAX})) continue;
      if (auto place = at(start, size, change)) return place;
    }
    return std::nullopt;
  }
};

TEST(areas_equal_a_search_through_all_places) {
  const uint64_t huge = page_of(huge_page_size());
  for (uint64_t seed = 0; seed < 60 && native_tests::failures == 0; ++seed) {
    Random random(seed);
    const uint64_t file_pages = random.between(1, 32) * huge;
    Areas areas(64 * huge_page_size());  // areas of 4 huge pages
    for (uint64_t start = 0; start < areas.capacity(); start += areas.area_bytes()) {
      if (start < file_pages * page_size() && random.one_in(3)) {
        areas.set({start, start + areas.area_bytes()}, PageSize::kHuge);
      }
    }
    UsageSet usage;
    for (uint64_t i = random.below(12); i > 0; --i) {
      (void)usage.try_insert(random_pages(random, file_pages, 3 * huge), PageUse{.refs = 1});
    }
    for (int i = 0; i < 12; ++i) {
      const PageSize size = random.one_in(2) ? PageSize::kHuge : PageSize::kSmall;
      PlacementRequest request;
      request.length = random.between(1, 6 * huge) * page_size();
      request.alignment = huge_page_size();
      request.file_size = file_pages * page_size();
      request.capacity = areas.capacity();
      const uint64_t whole =
          size == PageSize::kHuge ? align_up(request.length, huge_page_size()) : request.length;
      for (const Direction direction : {Direction::kBottomUp, Direction::kTopDown}) {
        request.direction = direction;
        const AreaReference reference{usage, areas, size, request, whole};
        std::optional<Place> expected;
        for (const bool change : {false, true}) {
          if (expected) break;
          expected = direction == Direction::kBottomUp ? reference.bottom_up(change)
                                                       : reference.top_down(change);
        }
        const auto found = find_place_in_areas(usage, areas, size, request);
        EXPECT_EQ(found ? std::optional<Place>({found->range, found->file_size}) : std::nullopt,
                  expected);
        if (found) EXPECT(found->size == size);
      }
    }
  }
}

TEST(b4_lengths_that_hold_a_huge_page_are_aligned_to_it) {
  EXPECT_EQ(default_alignment(page_size()), page_size());
  EXPECT_EQ(default_alignment(huge_page_size() - page_size()), page_size());
  EXPECT_EQ(default_alignment(huge_page_size()), huge_page_size());
  EXPECT_EQ(default_alignment(kChunkSize), huge_page_size());
}

TEST(b8_b10_files_grow_by_chunks_upwards_and_double_downwards) {
  UsageSet usage;
  PlacementRequest request{.length = page_size(), .alignment = page_size()};
  auto place = find_place(usage, request);
  EXPECT_EQ(place->range, (FileRange{0, page_size()}));
  EXPECT_EQ(place->file_size, kChunkSize);
  request.direction = Direction::kTopDown;
  place = find_place(usage, request);
  EXPECT_EQ(place->range, (FileRange{kChunkSize - page_size(), kChunkSize}));
  EXPECT_EQ(place->file_size, kChunkSize);

  usage.insert({0, kChunkSize}, PageUse{.refs = 1});
  request.file_size = kChunkSize;
  place = find_place(usage, request);
  EXPECT_EQ(place->file_size, 2 * kChunkSize);
  request.length = 2 * kChunkSize;
  place = find_place(usage, request);
  EXPECT_EQ(place->file_size, 4 * kChunkSize);
  EXPECT_EQ(place->range, (FileRange{2 * kChunkSize, 4 * kChunkSize}));
  request.capacity = 3 * kChunkSize;
  place = find_place(usage, request);
  EXPECT_EQ(place->file_size, 3 * kChunkSize);
  request.direction = Direction::kBottomUp;
  request.length = page_size();
  place = find_place(usage, request);
  EXPECT_EQ(place->file_size, 2 * kChunkSize);
}

TEST(b10_a_file_ends_where_offsets_do) {
  const uint64_t last_chunk = align_down(kMaxOffset, kChunkSize);
  UsageSet usage;
  usage.insert({0, last_chunk - page_size()}, PageUse{.refs = 1});
  PlacementRequest request{.length = page_size(), .alignment = page_size()};
  EXPECT_EQ(find_place(usage, request)->file_size, last_chunk);
  usage.insert({last_chunk - page_size(), last_chunk}, PageUse{.refs = 1});
  EXPECT_EQ(find_place(usage, request)->file_size, kMaxOffset);
  request.capacity = last_chunk + 5 * page_size();
  EXPECT_EQ(find_place(usage, request)->file_size, request.capacity);
  request.length = 6 * page_size();
  EXPECT(!find_place(usage, request));
}

TEST(b9_enormous_requests_have_no_place) {
  UsageSet usage;
  usage.insert({0, page_size()}, PageUse{.refs = 1});
  for (const Direction direction : {Direction::kBottomUp, Direction::kTopDown}) {
    for (const uint64_t length :
         {kMaxOffset - page_size() + 1, kMaxOffset + 1, align_down(UINT64_MAX, page_size())}) {
      EXPECT(!find_place(usage, {.length = length,
                                 .alignment = huge_page_size(),
                                 .direction = direction,
                                 .file_size = kChunkSize}));
    }
  }
}

}  // namespace
}  // namespace pgalloc::placement_test
