#include "pages/unpinned_pages.h"

#include <algorithm>
#include <array>

#include "native/support.h"

namespace pgalloc::unpinned_pages_test {
namespace {

using native_tests::page_of;
using native_tests::pages;
using native_tests::Random;
using native_tests::random_pages;

constexpr uint64_t kPages = 40;
using Page = UnpinnedTraits::Value;
using Model = std::array<Page, kPages>;

bool equals(const UnpinnedPages& unpinned, const Model& model) {
  Model found{};
  for (auto part = unpinned.set().first(); part.ok(); part = part.next()) {
    for (uint64_t i = page_of(part.start()); i < page_of(part.end()); ++i) found[i] = part.value();
  }
  EXPECT_EQ(unpinned.set().verify(), std::nullopt);
  return found == model;
}

TEST(random_steps_equal_the_model) {
  for (uint64_t seed = 0; seed < 10; ++seed) {
    Random random(seed);
    UnpinnedPages unpinned;
    Model model{};
    for (int i = 0; i < 500 && native_tests::failures == 0; ++i) {
      const FileRange range = random_pages(random, kPages, 10);
      const auto first = model.begin() + page_of(range.start);
      const auto last = model.begin() + page_of(range.end);
      const auto least = std::min_element(
          first, last, [](const Page& a, const Page& b) { return a.handles < b.handles; });
      for (const uint32_t handles : {1u, 2u}) {
        EXPECT_EQ(unpinned.has(range, handles), least->handles >= handles);
      }
      switch (random.below(8)) {
        case 0:
        case 1:
        case 2:
          unpinned.add(range);
          for (auto page = first; page != last; ++page) ++page->handles;
          break;
        case 3:
        case 4:
        case 5: {
          if (least->handles == 0) break;
          const uint64_t since = random.below(unpinned.now() + 1);
          EXPECT_EQ(unpinned.remove(range, since), std::all_of(first, last, [&](const Page& p) {
                      return p.discarded_at <= since;
                    }));
          for (auto page = first; page != last; ++page) {
            if (--page->handles == 0) *page = {};
          }
          break;
        }
        case 6: {
          unpinned.tick();
          unpinned.mark_discarded(range);
          for (auto page = first; page != last; ++page) {
            if (page->handles > 0) page->discarded_at = unpinned.now();
          }
          break;
        }
        default:
          if (!random.one_in(4)) break;
          unpinned.forget(range);
          std::fill(first, last, Page{});
      }
      EXPECT(equals(unpinned, model));
    }
  }
}

TEST(who_was_unpinned_before_a_discard_learns_of_it_who_came_later_does_not) {
  UnpinnedPages unpinned;
  const uint64_t early = unpinned.now();
  unpinned.add(pages(0, 4));
  unpinned.tick();
  unpinned.mark_discarded(pages(3, 4));
  const uint64_t late = unpinned.now();
  unpinned.add(pages(0, 4));
  EXPECT(unpinned.remove(pages(0, 4), late));
  EXPECT(!unpinned.remove(pages(0, 4), early));
  EXPECT(unpinned.empty());
}

}  // namespace
}  // namespace pgalloc::unpinned_pages_test
