// Random operations, against a model that knows each page by itself.

#include "pages/page_states.h"

#include <algorithm>
#include <functional>

#include "native/memory.h"
#include "native/support.h"

namespace pgalloc::page_states_test {
namespace {

using native_tests::page_of;
using native_tests::pages;
using native_tests::Random;
using native_tests::random_pages;
using native_tests::runs_where;

constexpr uint64_t kPages = 200;
constexpr uint64_t kFileSize = uint64_t{1} << 20;

enum class State { kFree, kUsed, kWaste, kReleasing, kQuarantined };

struct Page {
  State state = State::kFree;
  uint32_t refs = 0;
  uint32_t memcg_id = 0;
  MemoryKind kind = MemoryKind::kSystem;
  bool committed = false;
  uint32_t leases = 0;
  uint32_t unpinned = 0;
  uint32_t unadopted = 0;

  bool used() const { return state == State::kUsed; }
  PageUse use() const { return {refs, memcg_id, kind, committed}; }
};

// A list of segments page by page.
std::vector<std::pair<uint64_t, PageUse>> by_page(const std::vector<PageSegment>& segments) {
  std::vector<std::pair<uint64_t, PageUse>> result;
  for (const PageSegment& segment : segments) {
    for (uint64_t i = page_of(segment.range.start); i < page_of(segment.range.end); ++i) {
      result.emplace_back(i, segment.use);
    }
  }
  return result;
}

class Both {
 public:
  explicit Both(uint64_t seed) : random_(seed), model_(kPages) {}
  ~Both() { states_.clear(); }

  // As from an image.
  void restore() {
    std::vector<PageSegment> segments;
    for (uint64_t i = 10; i + 10 < kPages; i += random_.between(11, 30)) {
      const PageUse use{static_cast<uint32_t>(random_.between(1, 3)), 0, MemoryKind::kTmpfs, false};
      segments.push_back({pages(i, i + random_.between(1, 10)), use});
      change(segments.back().range, [&](Page& page) {
        page = {State::kUsed, use.refs, 0, use.kind};
        page.unadopted = use.refs;
      });
    }
    states_.restore(segments);
  }

  void step() {
    const FileRange range = random_pages(random_, kPages, 12);
    switch (random_.below(16)) {
      case 0:
      case 1:
        return allocate();
      case 2:
        return recycle();
      case 3:
        return inc_ref(range);
      case 4:
      case 5:
        return dec_ref(range);
      case 6:
        return commit(range);
      case 7:
        states_.mark_decommitted(range);
        return change(range, [](Page& page) {
          page.committed = false;
          if (!page.used()) page.memcg_id = 0;
        });
      case 8:
        return take_waste();
      case 9:
        return release();
      case 10:
        expect(states_.begin_lease(range),
               all(range, [](const Page& page) { return page.used() && page.refs > page.leases; }),
               range, [](Page& page) { ++page.leases; });
        return;
      case 11:
        expect(states_.end_lease(range),
               all(range, [](const Page& page) { return page.leases > 0; }), range,
               [](Page& page) { --page.leases; });
        return;
      case 12:
        expect(
            states_.unpin(range),
            all(range, [](const Page& page) { return page.used() && page.refs > page.unpinned; }),
            range, [](Page& page) { ++page.unpinned; });
        return;
      case 13:
        if (!all(range, [](const Page& page) { return page.unpinned > 0; })) return;
        EXPECT(states_.unpinned().remove(range, 0));
        return change(range, [](Page& page) { --page.unpinned; });
      case 14:
        expect(states_.adopt(range),
               all(range, [](const Page& page) { return page.used() && page.unadopted > 0; }),
               range, [](Page& page) { --page.unadopted; });
        return;
      default:
        if (random_.one_in(50)) drop_unadopted();
    }
  }

  void compare() {
    EXPECT_EQ(states_.verify(kFileSize), std::nullopt);
    std::vector<std::pair<uint64_t, PageUse>> all_pages;
    std::vector<std::pair<uint64_t, PageUse>> owned;
    std::vector<std::pair<uint64_t, uint64_t>> pinned;
    for (uint64_t i = 0; i < kPages; ++i) {
      const Page& page = model_[i];
      if (page.state != State::kFree) all_pages.emplace_back(i, page.use());
      if (!page.used()) continue;
      PageUse use = page.use();
      use.refs = std::max(page.refs - page.leases, 1u);
      owned.emplace_back(i, use);
      if (page.refs > page.unpinned + page.leases) {
        pinned.emplace_back(i, page.refs - page.unpinned - page.leases);
      }
    }
    EXPECT(by_page(states_.segments()) == all_pages);
    EXPECT(by_page(states_.owned_segments()) == owned);
    std::vector<std::pair<uint64_t, uint64_t>> pinned_pages;
    for (const auto& [range, handles] : states_.pinned()) {
      for (uint64_t i = page_of(range.start); i < page_of(range.end); ++i) {
        pinned_pages.emplace_back(i, handles);
      }
    }
    EXPECT(pinned_pages == pinned);
    EXPECT_EQ(states_.used_bytes(), bytes(&Page::used));
    EXPECT_EQ(states_.waste_bytes(), bytes_in(State::kWaste));
    EXPECT_EQ(states_.releasing_bytes(), bytes_in(State::kReleasing));
    EXPECT_EQ(states_.quarantined_bytes(), bytes_in(State::kQuarantined));
    EXPECT_EQ(states_.known_committed_bytes(), bytes(&Page::committed));
    EXPECT_EQ(states_.unadopted().set().span(), bytes(&Page::unadopted));

    const FileRange range = random_pages(random_, kPages, 8);
    const bool used = all(range, &Page::used);
    EXPECT_EQ(states_.check_used(range).ok(), used);
    const auto unique = states_.has_unique_ref(range);
    EXPECT_EQ(unique.ok(), used);
    if (unique.ok()) {
      EXPECT_EQ(*unique, all(range, [](const Page& page) { return page.refs == 1; }));
    }
    EXPECT_EQ(states_.is_discardable(range), all(range, [](const Page& page) {
                return page.used() && page.unpinned >= page.refs;
              }));
  }

 private:
  using Test = std::function<bool(const Page&)>;
  using Change = std::function<void(Page&)>;

  bool all(FileRange range, const Test& test) const {
    return std::all_of(model_.begin() + page_of(range.start), model_.begin() + page_of(range.end),
                       test);
  }
  void change(FileRange range, const Change& change) {
    std::for_each(model_.begin() + page_of(range.start), model_.begin() + page_of(range.end),
                  change);
  }
  uint64_t bytes(const Test& test) const {
    return std::count_if(model_.begin(), model_.end(), test) * page_size();
  }
  uint64_t bytes_in(State state) const {
    return bytes([&](const Page& page) { return page.state == state; });
  }
  // The result of a call that either changes all pages of `range` or none.
  bool expect(const Status& status, bool succeeds, FileRange range, const Change& change_page) {
    EXPECT_EQ(status.ok(), succeeds);
    if (succeeds) change(range, change_page);
    return succeeds;
  }

  void allocate() {
    const PlacementRequest request{
        .length = random_.between(1, 10) * page_size(),
        .alignment = page_size(),
        .direction = random_.one_in(2) ? Direction::kBottomUp : Direction::kTopDown,
        .file_size = kPages * page_size(),
        .capacity = kPages * page_size()};
    const auto place = find_place(states_.usage(), request);
    if (!place) return;
    const auto kind = static_cast<MemoryKind>(random_.below(3));
    const auto memcg_id = static_cast<uint32_t>(random_.below(3));
    EXPECT(all(place->range, [](const Page& page) { return page.state == State::kFree; }));
    states_.mark_used(*place, kind, memcg_id);
    change(place->range, [&](Page& page) { page = {State::kUsed, 1, memcg_id, kind}; });
  }

  std::vector<FileRange> waste_runs() const {
    return runs_where(kPages, [&](uint64_t i) { return model_[i].state == State::kWaste; });
  }
  void recycle() {
    const uint64_t length = random_.between(1, 6) * page_size();
    const uint64_t alignment = page_size() << random_.below(3);
    const bool up = random_.one_in(2);
    std::vector<FileRange> runs = waste_runs();
    if (!up) std::reverse(runs.begin(), runs.end());
    std::optional<FileRange> expected;
    for (size_t i = 0; i < std::min<size_t>(runs.size(), 16) && !expected; ++i) {
      if (runs[i].length() < length) continue;
      const uint64_t start =
          up ? align_up(runs[i].start, alignment) : align_down(runs[i].end - length, alignment);
      const FileRange range{start, start + length};
      if (runs[i].is_superset_of(range)) expected = range;
    }
    const auto range =
        states_.recycle(length, alignment, up ? Direction::kBottomUp : Direction::kTopDown,
                        PageSize::kSmall, MemoryKind::kPageCache, 2);
    EXPECT_EQ(range, expected);
    if (range) {
      change(*range, [](Page& page) {
        page = {State::kUsed, 1, 2, MemoryKind::kPageCache, page.committed};
      });
    }
  }

  void inc_ref(FileRange range) {
    const auto memcg_id = static_cast<uint32_t>(random_.below(3));
    const Status status = states_.inc_ref(range, memcg_id);
    if (!status.ok()) {
      const bool dead =
          !all(range, [](const Page& page) { return page.state == State::kFree || page.used(); });
      EXPECT_EQ(status.code(), dead ? ErrorCode::kRefCount : ErrorCode::kRange);
    }
    expect(status, all(range, &Page::used), range, [&](Page& page) {
      ++page.refs;
      if (page.memcg_id == 0) page.memcg_id = memcg_id;
    });
  }
  void dec_ref(FileRange range) {
    // A handle that is unpinned is forgotten before its reference goes.
    const bool allowed = all(range, [](const Page& page) { return page.refs > page.unpinned; });
    if (all(range, &Page::used) && !allowed) return;
    const uint64_t before = states_.used_bytes();
    const auto wasted = states_.dec_ref(range);
    const bool succeeds = expect(wasted.ok() ? Status() : wasted.status().clone(),
                                 all(range, &Page::used), range, [](Page& page) {
                                   --page.refs;
                                   page.leases = std::min(page.leases, page.refs);
                                   page.unadopted = std::min(page.unadopted, page.refs);
                                   if (page.refs == 0) become_waste(page);
                                 });
    if (succeeds) EXPECT_EQ(*wasted, before - bytes(&Page::used));
  }
  static void become_waste(Page& page) {
    page = {State::kWaste, 0, page.committed ? page.memcg_id : 0, MemoryKind::kSystem,
            page.committed};
  }
  void drop_unadopted() {
    const uint64_t before = bytes(&Page::used);
    for (const Page& page : model_) {
      if (page.unadopted > 0 && page.refs - page.unadopted < page.unpinned) return;
    }
    const uint64_t wasted = states_.drop_unadopted();
    change(pages(0, kPages), [](Page& page) {
      if (page.unadopted == 0) return;
      page.refs -= page.unadopted;
      page.unadopted = 0;
      page.leases = std::min(page.leases, page.refs);
      if (page.refs == 0) become_waste(page);
    });
    EXPECT_EQ(wasted, before - bytes(&Page::used));
  }

  void commit(FileRange range) {
    const std::vector<uint32_t> ids = {1};
    const bool filter = random_.one_in(2);
    const uint64_t before = bytes(&Page::committed);
    const uint64_t booked = states_.mark_committed(range, filter ? &ids : nullptr);
    change(range, [&](Page& page) {
      if (page.used() && (!filter || page.memcg_id == 1)) page.committed = true;
    });
    EXPECT_EQ(booked, bytes(&Page::committed) - before);
  }

  void take_waste() {
    const std::vector<FileRange> runs = waste_runs();
    const uint64_t bytes_max = random_.between(1, 8) * page_size();
    EXPECT_EQ(states_.next_waste(), runs.empty() ? std::nullopt : std::optional(runs.back()));
    const auto taken = states_.take_waste(bytes_max);
    EXPECT_EQ(taken.has_value(), !runs.empty());
    if (!taken || runs.empty()) return;
    const FileRange last = runs.back();
    EXPECT_EQ(*taken, (FileRange{last.end - std::min(bytes_max, last.length()), last.end}));
    change(*taken, [](Page& page) { page.state = State::kReleasing; });
    releasing_.push_back(*taken);
  }
  void release() {
    if (releasing_.empty()) return;
    const FileRange range = releasing_.back();
    releasing_.pop_back();
    if (random_.one_in(10)) {
      states_.quarantine(range);
      return change(range, [](Page& page) { page.state = State::kQuarantined; });
    }
    states_.finish_release(range);
    change(range, [](Page& page) { page = {}; });
  }

  Random random_;
  Ledger ledger_;
  PageStates states_{ledger_};
  std::vector<Page> model_;
  std::vector<FileRange> releasing_;
};

TEST(random_operations_equal_the_model) {
  for (uint64_t seed = 0; seed < 6 && native_tests::failures == 0; ++seed) {
    Both both(seed);
    if (seed % 2 == 1) both.restore();
    for (int i = 0; i < 800 && native_tests::failures == 0; ++i) {
      both.step();
      both.compare();
    }
  }
}

// --- By name -------------------------------------------------------------------------------------

struct Few {
  explicit Few(uint64_t capacity = kMaxOffset) : states(ledger, capacity) {}

  Ledger ledger;
  PageStates states;

  FileRange allocate(uint64_t count, uint32_t memcg_id = 0) {
    const auto place = find_place(states.usage(), {.length = count * page_size(),
                                                   .alignment = page_size(),
                                                   .file_size = kFileSize,
                                                   .capacity = kFileSize});
    states.mark_used(*place, MemoryKind::kTmpfs, memcg_id);
    return place->range;
  }
};

TEST(c1_ranges_that_are_no_pages_in_use_are_errors) {
  Few few;
  EXPECT_EQ(few.allocate(4), pages(0, 4));
  for (const FileRange range :
       {FileRange{0, 0}, FileRange{page_size(), 0}, FileRange{1, page_size()},
        FileRange{0, page_size() + 1}, pages(3, 5), pages(7, 8)}) {
    EXPECT_EQ(few.states.check_used(range).code(), ErrorCode::kRange);
    EXPECT_EQ(few.states.inc_ref(range, 0).code(), ErrorCode::kRange);
    EXPECT_EQ(few.states.dec_ref(range).status().code(), ErrorCode::kRange);
    EXPECT_EQ(few.states.unpin(range).code(), ErrorCode::kRange);
  }
}

TEST(c3_references_do_not_overflow) {
  Few few;
  few.states.restore({{pages(0, 1), {UINT32_MAX, 0, MemoryKind::kTmpfs, false}},
                      {pages(1, 2), {1, 0, MemoryKind::kTmpfs, false}}});
  EXPECT_EQ(few.states.inc_ref(pages(0, 2), 0).code(), ErrorCode::kRefCount);
  EXPECT(few.states.inc_ref(pages(1, 2), 0).ok());
  EXPECT_EQ(few.states.verify(kFileSize), std::nullopt);
}

TEST(j6_what_is_restored_into_huge_areas_is_free_by_whole_huge_pages) {
  const uint64_t huge = huge_page_size();
  const PageUse use{1, 0, MemoryKind::kTmpfs, false};
  Ledger ledger;
  PageStates states(ledger, 64 * huge);  // areas of 4 huge pages
  const FileRange first{0, huge + page_size()};
  const FileRange second{2 * huge - page_size(), 2 * huge};
  states.restore({{first, use, PageSize::kHuge},
                  {second, use, PageSize::kHuge},
                  {{4 * huge, 4 * huge + page_size()}, use, PageSize::kSmall},
                  // In one area with pages of the other size.
                  {{8 * huge, 9 * huge}, use, PageSize::kHuge},
                  {{11 * huge, 11 * huge + page_size()}, use, PageSize::kSmall}});
  EXPECT_EQ(states.verify(64 * huge), std::nullopt);
  EXPECT(states.areas().at(0) == PageSize::kHuge);
  EXPECT(states.areas().at(4 * huge) == PageSize::kSmall);
  EXPECT(states.areas().at(8 * huge) == PageSize::kSmall);
  EXPECT_EQ(states.allocated_bytes(), states.used_bytes());
  EXPECT_EQ(states.usage().find(second.start - page_size()).value().refs, 0u);
  EXPECT(states.dec_ref(first).ok());
  EXPECT_EQ(states.waste_bytes(), first.length());
  EXPECT(states.dec_ref(second).ok());
  EXPECT_EQ(states.waste_bytes(), 2 * huge);
  EXPECT_EQ(states.verify(64 * huge), std::nullopt);
  EXPECT_EQ(*states.take_waste(UINT64_MAX), (FileRange{0, 2 * huge}));
  states.finish_release({0, 2 * huge});
  EXPECT_EQ(states.verify(64 * huge), std::nullopt);
  states.clear();
}

TEST(c4_freed_pages_are_booked_to_system_in_the_same_memory_cgroup) {
  Few few;
  const FileRange range = few.allocate(2, /*memcg_id=*/9);
  few.states.mark_committed(pages(0, 1), nullptr);
  EXPECT_EQ(*few.states.dec_ref(range), 2 * page_size());
  EXPECT_EQ(few.ledger.memcg(9)[static_cast<size_t>(MemoryKind::kSystem)], page_size());
  EXPECT_EQ(few.ledger.memcg(9)[static_cast<size_t>(MemoryKind::kTmpfs)], 0u);
  EXPECT_EQ(few.states.inc_ref(range, 0).code(), ErrorCode::kRefCount);
  EXPECT_EQ(few.states.dec_ref(range).status().code(), ErrorCode::kRefCount);
}

TEST(a_lease_is_one_of_the_references) {
  Few few;
  const FileRange range = few.allocate(2);
  EXPECT(few.states.begin_lease(range).ok());
  EXPECT_EQ(few.states.begin_lease(range).code(), ErrorCode::kRefCount);  // all are leased
  EXPECT(few.states.inc_ref(pages(0, 1), 0).ok());
  EXPECT(few.states.begin_lease(pages(0, 1)).ok());
  EXPECT_EQ(few.states.end_lease(pages(1, 3)).code(), ErrorCode::kRefCount);
  // An image has a reference for pages that only other processes hold.
  const auto owned = few.states.owned_segments();
  EXPECT_EQ(owned.size(), 1u);
  EXPECT_EQ(owned[0].range, range);
  EXPECT_EQ(owned[0].use.refs, 1u);
  EXPECT(few.states.pinned().empty());
  EXPECT(few.states.end_lease(range).ok());
  EXPECT(few.states.end_lease(pages(0, 1)).ok());
  EXPECT_EQ(few.states.end_lease(pages(0, 1)).code(), ErrorCode::kRefCount);
  EXPECT_EQ(few.states.verify(kFileSize), std::nullopt);
}

TEST(pages_that_arrive_are_kept_from_the_reclaimer_and_from_new_owners) {
  Few few;
  const FileRange range = few.allocate(6);
  few.states.pending().expect(pages(2, 4));
  EXPECT_EQ(few.states.pending().start(pages(2, 3)).size(), 1u);
  EXPECT(!few.states.is_discardable(range));
  EXPECT(few.states.dec_ref(range).ok());  // forgets page 3, which waited
  EXPECT_EQ(few.states.verify(kFileSize), std::nullopt);
  EXPECT_EQ(few.states.pending().forgotten_bytes(), page_size());
  EXPECT_EQ(few.states.recycle(6 * page_size(), page_size(), Direction::kBottomUp, PageSize::kSmall,
                               MemoryKind::kTmpfs, 0),
            std::nullopt);
  EXPECT_EQ(few.states.take_waste(UINT64_MAX), std::optional(pages(0, 2)));
  EXPECT_EQ(few.states.take_waste(UINT64_MAX), std::optional(pages(3, 6)));
  EXPECT_EQ(few.states.take_waste(UINT64_MAX), std::nullopt);
  few.states.pending().arrived(pages(2, 3));
  EXPECT_EQ(few.states.take_waste(UINT64_MAX), std::optional(pages(2, 3)));
}

// A list of any length: it runs out of room in every place.
TEST(b5_what_is_recycled_is_not_lost_when_memory_runs_out) {
  for (uint64_t count = 1; count < 60; ++count) {
    Few few;
    const FileRange range = few.allocate(4 * count);
    for (uint64_t i = 0; i < count; ++i) EXPECT(few.states.dec_ref(pages(4 * i, 4 * i + 3)).ok());
    native_tests::allocations_left = 0;
    const auto recycled = few.states.recycle(2 * page_size(), page_size(), Direction::kBottomUp,
                                             PageSize::kSmall, MemoryKind::kTmpfs, 0);
    native_tests::allocations_left = -1;
    EXPECT_EQ(recycled, std::optional(pages(0, 2)));
    EXPECT_EQ(few.states.used_bytes(), count * page_size() + 2 * page_size());
    EXPECT_EQ(few.states.verify(range.end), std::nullopt);
  }
}

TEST(c4_a_reference_is_dropped_from_all_pages_or_from_none_when_memory_runs_out) {
  for (const PageSize size : {PageSize::kSmall, PageSize::kHuge}) {
    constexpr uint64_t kPages = 250;
    for (int64_t left = 0;; left += left < 30 ? 1 : 41) {
      Few few(kChunkSize);
      PageStates& states = few.states;
      states.set_areas({0, kChunkSize}, size);
      EXPECT_EQ(few.allocate(kPages), pages(0, kPages));
      // All kinds of neighbours, and more of them than a node holds.
      for (uint64_t i = 0; i + 4 < kPages; i += 5) {
        EXPECT(states.inc_ref(pages(i, i + 2), 0).ok());
        EXPECT(states.unpin(pages(i + 1, i + 4)).ok());
        EXPECT(states.begin_lease(pages(i, i + 1)).ok());
        states.pending().expect(pages(i + 3, i + 5));
      }
      const auto all = [&] {
        return std::tuple(states.usage().export_segments(), states.used_bytes(),
                          states.waste_bytes(), states.unpinned().set().span(),
                          states.pending().outstanding_bytes());
      };
      const FileRange range = pages(2, kPages - 1);
      const auto before = all();
      native_tests::allocations_left = left;
      bool dropped = false;
      try {
        dropped = EXPECT(states.dec_ref(range).ok());
        if (!dropped) return;
      } catch (const std::bad_alloc&) {  // NOLINT: that is what is tried
      }
      native_tests::allocations_left = -1;
      EXPECT(dropped || all() == before);
      EXPECT_EQ(states.verify(kChunkSize), std::nullopt);
      if (dropped) break;
    }
  }
}

TEST(pages_that_arrive_do_not_keep_others_from_being_discarded) {
  Few few;
  const FileRange range = few.allocate(6);
  EXPECT(few.states.unpin(range).ok());
  EXPECT(few.states.is_discardable(range));
  few.states.pending().expect(pages(2, 4));
  EXPECT(few.states.is_discardable(pages(0, 2)));
  EXPECT(few.states.is_discardable(pages(4, 6)));
  EXPECT(!few.states.is_discardable(pages(1, 3)));
  EXPECT(!few.states.is_discardable(pages(3, 5)));
}

TEST(clearing_brings_the_account_to_zero) {
  Few few;
  few.allocate(8, 3);
  few.states.mark_committed(pages(0, 8), nullptr);
  EXPECT(few.states.dec_ref(pages(0, 4)).ok());
  few.states.clear();
  EXPECT_EQ(few.ledger.snapshot().sum(), 0u);
  EXPECT(few.ledger.snapshot().memcgs.empty());
  EXPECT_EQ(few.states.allocated_bytes(), 0u);
  EXPECT_EQ(few.states.verify(0), std::nullopt);
}

}  // namespace
}  // namespace pgalloc::page_states_test
