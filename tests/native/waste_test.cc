// Waste: what goes next, and what waits for the rest of its huge page, against a list of all pages.

#include "pages/waste.h"

#include <algorithm>

#include "native/memory.h"
#include "native/support.h"

namespace pgalloc::waste_test {
namespace {

using native_tests::page_of;
using native_tests::Random;
using native_tests::random_pages;
using native_tests::runs_where;

enum class State { kElsewhere, kWaits, kReleasing, kSubreleased };

// Areas of four huge pages, of which every second one is for huge pages; ranges of so many pages at most are
// freed.
class Both {
 public:
  explicit Both(uint64_t seed, uint64_t length_max = page_of(3 * huge_page_size()))
      : random_(seed), length_max_(length_max), pages_(page_of(kHugePages * huge_page_size())) {
    for (uint64_t start = 0; start < areas_.capacity(); start += 2 * areas_.area_bytes()) {
      areas_.set({start, start + areas_.area_bytes()}, PageSize::kHuge);
    }
  }

  // How often memory ran out.
  uint64_t run_outs() const { return run_outs_; }

  void step() {
    switch (random_.below(4)) {
      case 0:
      case 1:
        return free_some();
      case 2:
        return take();
      default:
        return finish();
    }
  }

  void compare() {
    EXPECT_EQ(waste_.verify(), std::nullopt);
    EXPECT_EQ(waste_.bytes(), count(State::kWaits));
    EXPECT_EQ(waste_.subreleased_bytes(), count(State::kSubreleased));
    EXPECT_EQ(waste_.next(pending_), expected_next());
    uint64_t part_bytes = 0;
    for (const FileRange& part : parts()) part_bytes += part.length();
    EXPECT_EQ(waste_.part_bytes(), part_bytes);
    for (const uint64_t below : {uint64_t{0}, random_.below(areas_.capacity()), UINT64_MAX}) {
      auto below_it = parts();
      while (!below_it.empty() && below_it.back().start >= below) below_it.pop_back();
      EXPECT_EQ(waste_.next_part(pending_, below), last_of(below_it));
    }
  }

 private:
  static constexpr uint64_t kHugePages = 64;

  uint64_t count(State state) const {
    return std::count(pages_.begin(), pages_.end(), state) * page_size();
  }
  bool is_huge(uint64_t page) const { return areas_.at(page * page_size()) == PageSize::kHuge; }
  bool is_waiting(uint64_t page) const { return pages_[page] == State::kWaits; }
  // Whether nothing of the page's huge page is used.
  bool is_whole(uint64_t page) const {
    const uint64_t per_huge = page_of(huge_page_size());
    const auto first = pages_.begin() + static_cast<ptrdiff_t>(page / per_huge * per_huge);
    return std::all_of(first, first + static_cast<ptrdiff_t>(per_huge), [](State state) {
      return state == State::kWaits || state == State::kSubreleased;
    });
  }
  // What is subreleased waits again when its huge page is whole.
  void settle() {
    for (uint64_t page = 0; page < pages_.size(); page += 1) {
      if (pages_[page] == State::kSubreleased && is_whole(page)) pages_[page] = State::kWaits;
    }
  }
  using Runs = std::vector<FileRange>;
  static std::optional<FileRange> last_of(const Runs& runs) {
    return runs.empty() ? std::nullopt : std::optional(runs.back());
  }
  Runs parts() const {
    return runs_where(pages_.size(), [&](uint64_t page) {
      return is_waiting(page) && is_huge(page) && !is_whole(page);
    });
  }
  std::optional<FileRange> expected_next() const {
    const auto small = runs_where(
        pages_.size(), [&](uint64_t page) { return is_waiting(page) && !is_huge(page); });
    if (!small.empty()) return small.back();
    return last_of(runs_where(pages_.size(), [&](uint64_t page) {
      return is_waiting(page) && is_huge(page) && is_whole(page);
    }));
  }
  void set(FileRange range, State state) {
    std::fill(pages_.begin() + static_cast<ptrdiff_t>(page_of(range.start)),
              pages_.begin() + static_cast<ptrdiff_t>(page_of(range.end)), state);
  }

  void free_some() {
    const FileRange range = random_pages(random_, pages_.size(), length_max_);
    uint64_t start = page_of(range.start);
    // A part of it that is not here.
    while (start < page_of(range.end) && pages_[start] != State::kElsewhere) ++start;
    uint64_t end = start;
    while (end < page_of(range.end) && pages_[end] == State::kElsewhere) ++end;
    if (start == end) return;
    attempt([&] { waste_.add(native_tests::pages(start, end)); });
    set(native_tests::pages(start, end), State::kWaits);
    settle();
  }
  void take() {
    auto next = waste_.next(pending_);
    if (!next) next = waste_.next_part(pending_, random_.below(areas_.capacity()));
    if (!next) return;
    FileRange range = *next;
    if (!waste_.is_partial(range) && !is_huge(page_of(range.start))) {
      range.start = range.end - std::min<uint64_t>(range.length(), 5 * page_size());
    }
    waste_.remove(range);
    set(range, State::kReleasing);
    releasing_.push_back(range);
  }
  void finish() {
    if (releasing_.empty()) return;
    const FileRange range = releasing_[random_.below(releasing_.size())];
    std::erase(releasing_, range);
    if (!waste_.is_partial(range)) return set(range, State::kElsewhere);
    attempt([&] { waste_.add_subreleased(range); });
    set(range, State::kSubreleased);
    settle();
  }

  // While allocations fail, it changes nothing.
  template <class Act>
  void attempt(Act act) {
    const auto all = [this] {
      std::vector<std::pair<FileRange, bool>> ranges;
      waste_.visit(
          [&](FileRange range, bool given_back) { ranges.emplace_back(range, given_back); });
      return ranges;
    };
    const auto before = all();
    run_outs_ += native_tests::fail_each_allocation(act, [&] {
      EXPECT_EQ(all(), before);
      EXPECT_EQ(waste_.verify(), std::nullopt);
    });
  }

  Random random_;
  const uint64_t length_max_;
  uint64_t run_outs_ = 0;
  Areas areas_{kHugePages * huge_page_size()};
  Waste waste_{areas_};
  PendingPages pending_;
  std::vector<State> pages_;
  std::vector<FileRange> releasing_;
};

TEST(random_steps_equal_the_model) {
  for (uint64_t seed = 0; seed < 4 && native_tests::failures == 0; ++seed) {
    Both both(seed);
    for (int i = 0; i < 100 && native_tests::failures == 0; ++i) {
      both.step();
      both.compare();
    }
  }
}

TEST(short_ranges_of_which_there_are_many_need_memory_and_may_have_none) {
  for (const uint64_t length_max : {uint64_t{1}, uint64_t{20}}) {
    Both both(length_max, length_max);
    for (int i = 0; i < 4000 && native_tests::failures == 0; ++i) {
      both.step();
      if (i % 100 == 0) both.compare();
    }
    EXPECT(both.run_outs() > 0);
  }
}

// The last pages of two huge pages, of which each has parts in both states, and so have those around them.
TEST(what_settles_may_have_no_memory) {
  Areas areas(64 * huge_page_size());
  areas.set({0, areas.capacity()}, PageSize::kHuge);
  const uint64_t page = page_size();
  const uint64_t half = huge_page_size() / 2;
  for (uint64_t count = 1; count < 100; ++count) {
    Waste waste(areas);
    // Lists of any length, which run out of room in every place.
    for (uint64_t i = 1; i <= count; ++i)
      waste.add({64 * huge_page_size() - 2 * i * page, 64 * huge_page_size() - (2 * i - 1) * page});
    waste.add_subreleased({half, huge_page_size() + half - page});
    waste.add({huge_page_size() + half, 3 * huge_page_size() - half});
    const uint64_t bytes = waste.bytes();
    const uint64_t subreleased = waste.subreleased_bytes();
    native_tests::fail_each_allocation(
        [&] { waste.add({huge_page_size() + half - page, huge_page_size() + half}); },
        [&] {
          EXPECT_EQ(waste.bytes(), bytes);
          EXPECT_EQ(waste.subreleased_bytes(), subreleased);
          EXPECT_EQ(waste.verify(), std::nullopt);
        });
    EXPECT_EQ(waste.verify(), std::nullopt);
    EXPECT_EQ(waste.recyclable_bytes(), huge_page_size());
  }
}

TEST(pages_that_arrive_keep_their_huge_page_back) {
  Areas areas(64 * huge_page_size());
  areas.set({0, 4 * huge_page_size()}, PageSize::kHuge);
  Waste waste(areas);
  PendingPages pending;
  const FileRange arriving{huge_page_size(), huge_page_size() + page_size()};
  pending.expect(arriving);
  pending.start(arriving);
  waste.add({0, 3 * huge_page_size()});
  EXPECT_EQ(waste.next(pending), std::optional(FileRange{0, huge_page_size()}));
  waste.remove({0, huge_page_size()});
  EXPECT_EQ(waste.next(pending),
            std::optional(FileRange{2 * huge_page_size(), 3 * huge_page_size()}));
  waste.remove({2 * huge_page_size(), 3 * huge_page_size()});
  EXPECT_EQ(waste.next(pending), std::nullopt);
  pending.arrived(arriving);
  EXPECT_EQ(waste.next(pending), std::optional(FileRange{huge_page_size(), 2 * huge_page_size()}));
}

TEST(what_is_to_be_used_again_is_sought_among_pages_of_its_size) {
  Areas areas(64 * huge_page_size());
  const uint64_t area = areas.area_bytes();
  areas.set({area, 2 * area}, PageSize::kHuge);
  Waste waste(areas);
  const PendingPages pending;
  waste.add({0, 2 * area});
  const auto find = [&](uint64_t length, bool up, PageSize size) {
    return waste.find(length, page_size(), up, size, pending);
  };
  EXPECT_EQ(find(area, true, PageSize::kSmall), std::optional(FileRange{0, area}));
  EXPECT_EQ(find(area + page_size(), true, PageSize::kSmall), std::nullopt);
  EXPECT_EQ(find(page_size(), false, PageSize::kSmall),
            std::optional(FileRange{area - page_size(), area}));
  EXPECT_EQ(find(huge_page_size(), true, PageSize::kHuge),
            std::optional(FileRange{area, area + huge_page_size()}));
}

}  // namespace
}  // namespace pgalloc::waste_test
