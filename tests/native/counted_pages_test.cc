#include "pages/counted_pages.h"

#include <algorithm>
#include <array>

#include "native/support.h"

namespace pgalloc::counted_pages_test {
namespace {

using native_tests::page_of;
using native_tests::pages;
using native_tests::Random;
using native_tests::random_pages;
using native_tests::runs_where;

constexpr uint64_t kPages = 50;
using Model = std::array<uint32_t, kPages>;

Model counts_of(const CountedPages& counted) {
  Model counts{};
  for (auto part = counted.set().first(); part.ok(); part = part.next()) {
    EXPECT(part.value() > 0);
    for (uint64_t i = page_of(part.start()); i < page_of(part.end()); ++i) counts[i] = part.value();
  }
  EXPECT_EQ(counted.set().verify(), std::nullopt);
  return counts;
}

TEST(random_steps_equal_the_model) {
  for (uint64_t seed = 0; seed < 10; ++seed) {
    Random random(seed);
    CountedPages counted;
    Model model{};
    for (int i = 0; i < 500 && native_tests::failures == 0; ++i) {
      const FileRange range = random_pages(random, kPages, 12);
      const auto first = model.begin() + page_of(range.start);
      const auto last = model.begin() + page_of(range.end);
      const bool held = std::none_of(first, last, [](uint32_t count) { return count == 0; });
      const bool none = std::all_of(first, last, [](uint32_t count) { return count == 0; });
      EXPECT_EQ(counted.has(range), held);
      EXPECT_EQ(counted.is_unique(range),
                std::all_of(first, last, [](uint32_t count) { return count == 1; }));
      switch (random.below(6)) {
        case 0:
        case 1:
          EXPECT(counted.add(range));
          for (auto count = first; count != last; ++count) ++*count;
          break;
        case 2:
        case 3: {
          std::vector<FileRange> gone = {pages(0, 1)};
          const auto expected = runs_where(kPages, [&](uint64_t page) {
            return range.contains(page * page_size()) && model[page] == 1;
          });
          EXPECT_EQ(counted.remove(range, &gone), held);
          if (!held) break;
          for (auto count = first; count != last; ++count) --*count;
          EXPECT_EQ(gone, expected);
          break;
        }
        case 4: {
          const auto most = static_cast<uint32_t>(random.below(4));
          counted.limit(range, most);
          for (auto count = first; count != last; ++count) *count = std::min(*count, most);
          break;
        }
        default:
          if (!none) break;
          counted.record(range, 2);
          std::fill(first, last, 2);
      }
      EXPECT_EQ(counts_of(counted), model);
      EXPECT_EQ(counted.empty(), model == Model{});
    }
  }
}

TEST(an_overflow_changes_nothing) {
  CountedPages counted;
  counted.record(pages(2, 3), UINT32_MAX);
  counted.record(pages(4, 5), 1);
  const Model before = counts_of(counted);
  EXPECT(!counted.add(pages(0, 6)));
  EXPECT(!counted.add(pages(2, 3)));
  EXPECT_EQ(counts_of(counted), before);
  EXPECT(counted.add(pages(3, 6)));
}

TEST(removing_what_is_not_held_throughout_changes_nothing) {
  CountedPages counted;
  EXPECT(counted.add(pages(0, 2)));
  EXPECT(counted.add(pages(3, 4)));
  EXPECT(!counted.remove(pages(0, 4), nullptr));
  EXPECT(counted.has(pages(0, 2)) && counted.has(pages(3, 4)));
  EXPECT(counted.remove(pages(1, 2), nullptr));
  EXPECT(!counted.has(pages(0, 2)) && counted.has(pages(0, 1)));
}

TEST(swap_and_clear) {
  CountedPages one;
  CountedPages other;
  EXPECT(one.add(pages(0, 1)));
  one.swap(other);
  EXPECT(one.empty() && other.has(pages(0, 1)));
  other.clear();
  EXPECT(other.empty());
}

}  // namespace
}  // namespace pgalloc::counted_pages_test
