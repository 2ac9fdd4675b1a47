// Section F.

#include "file/reclaimer.h"

#include <errno.h>

#include <atomic>
#include <string>
#include <thread>

#include "native/fake_level.h"
#include "native/memory.h"
#include "native/rig.h"
#include "os/fault_plan.h"

namespace pgalloc::reclaimer_test {
namespace {

using native_tests::FakeKernel;
using native_tests::FakeLevel;
using native_tests::in_a_minute;
using native_tests::kPast;
using native_tests::pages;
using native_tests::Rig;
using Ranges = std::vector<FileRange>;
using Release = Reclaimer::Release;

constexpr uint64_t kMib = uint64_t{1} << 20;

bool busy(Evictables& evictables) { return !evictables.wait_until_idle(kPast); }

TEST(f1_the_highest_range_goes_first_and_neighbours_in_one_piece) {
  Rig rig;
  rig.allocate(20);
  rig.reclaimer.start_log();
  for (const FileRange range : {pages(12, 13), pages(3, 5), pages(7, 8), pages(5, 6)}) {
    EXPECT(rig.references.dec_ref(range).ok());
  }
  EXPECT(rig.reclaimer.start().ok());
  EXPECT(rig.wait_for_reclaim());
  EXPECT_EQ(rig.reclaimer.log(), (Ranges{pages(12, 13), pages(7, 8), pages(3, 6)}));
  EXPECT_EQ(rig.stats().punches, 3u);
  EXPECT_EQ(rig.stats().punched_bytes, 5 * page_size());
  rig.reclaimer.stop_log();
  EXPECT_EQ(rig.reclaimer.log(), Ranges{});
}

TEST(f1_at_most_128_mib_go_in_one_punch) {
  Rig rig;
  const FileRange range = rig.allocate(300 * kMib / page_size());
  rig.reclaimer.start_log();
  EXPECT(rig.references.dec_ref(range).ok());
  EXPECT(rig.reclaimer.start().ok());
  EXPECT(rig.wait_for_reclaim());
  EXPECT_EQ(rig.reclaimer.log(),
            (Ranges{{172 * kMib, 300 * kMib}, {44 * kMib, 172 * kMib}, {0, 44 * kMib}}));
}

TEST(f1_what_was_freed_leaves_the_account_and_the_file) {
  Rig rig;
  const FileRange range = rig.allocate(8);
  rig.fill(range, 'x');
  EXPECT(*rig.scanner.update(nullptr));
  EXPECT_EQ(rig.state.ledger.snapshot().sum(), range.length());
  EXPECT(rig.references.dec_ref(pages(0, 6)).ok());
  EXPECT(rig.reclaimer.start().ok());
  EXPECT(rig.wait_for_reclaim());
  EXPECT_EQ(rig.state.ledger.snapshot().sum(), 2 * page_size());
  EXPECT_EQ(*rig.file->stored_bytes(), 2 * page_size());
  EXPECT(rig.all(pages(0, 6), '\0') && rig.all(pages(6, 8), 'x'));
  EXPECT_EQ(rig.allocate(6), pages(0, 6));
}

TEST(f2_zeros_are_written_where_punching_fails) {
  Rig rig;
  rig.fill(rig.allocate(4), 'x');
  EXPECT(os::install_fault({.name = "fallocate", .error_number = EIO}));
  EXPECT(rig.references.dec_ref(pages(0, 3)).ok());
  EXPECT(rig.reclaimer.start().ok());
  EXPECT(rig.wait_for_reclaim());
  os::remove_fault();
  EXPECT(rig.all(pages(0, 3), '\0') && rig.all(pages(3, 4), 'x'));
  EXPECT_EQ(rig.stats().punch_failures, 1u);
  EXPECT_EQ(rig.stats().quarantined_bytes, 0u);
  EXPECT_EQ(rig.state.warnings.size(), 1u);
  EXPECT_EQ(rig.allocate(3), pages(0, 3));
}

TEST(f2_what_can_be_neither_punched_nor_zeroed_is_never_used_again) {
  Rig rig;
  rig.fill(rig.allocate(4), 'x');
  FakeKernel fake;
  fake.calls.fallocate = [](int, int, off_t, off_t) { return errno = EIO, -1; };
  fake.calls.pwrite = [](int, const void*, size_t, off_t) -> ssize_t { return errno = EIO, -1; };
  fake.begin();
  EXPECT(rig.references.dec_ref(pages(0, 3)).ok());
  EXPECT(rig.reclaimer.start().ok());
  EXPECT(rig.wait_for_reclaim());
  os::use(os::kernel());
  EXPECT_EQ(rig.stats().quarantined_bytes, 3 * page_size());
  EXPECT_EQ(rig.stats().punched_bytes, 0u);
  EXPECT_EQ(rig.state.warnings.size(), 1u);
  EXPECT_EQ(rig.allocate(1), pages(4, 5));
  EXPECT_EQ(rig.verify(), std::nullopt);
  const FileLock lock(rig.state);
  EXPECT_EQ(rig.state.pages.quarantined_bytes(), 3 * page_size());
  EXPECT(!rig.reclaimer.pending());
}

TEST(f3_with_manual_zeroing_only_whole_huge_pages_are_punched) {
  Rig rig({.manual_zeroing = true});
  const FileRange range{page_size(), 3 * huge_page_size() - page_size()};
  rig.allocate(3 * huge_page_size() / page_size());
  rig.fill({0, 3 * huge_page_size()}, 'x');
  EXPECT(rig.reclaimer.release_pages(range) == Release::kPunched);
  EXPECT(rig.all({0, huge_page_size()}, 'x'));
  EXPECT(rig.all({huge_page_size(), 2 * huge_page_size()}, '\0'));
  EXPECT(rig.all({2 * huge_page_size(), 3 * huge_page_size()}, 'x'));
  EXPECT(os::install_fault({.name = "fallocate", .error_number = EIO}));
  // No whole one.
  EXPECT(rig.reclaimer.release_pages({0, huge_page_size() - page_size()}) == Release::kZeroed);
  EXPECT_EQ(os::fault_calls(), 0u);
  EXPECT(rig.reclaimer.release_pages({0, huge_page_size()}) == Release::kZeroed);  // only a warning
  EXPECT_EQ(os::fault_calls(), 1u);
  os::remove_fault();
  EXPECT_EQ(rig.state.warnings.size(), 1u);
}

// As a kernel does that cannot split a huge page: the next `zeroing_punches` only zero.
std::atomic<int> zeroing_punches = 0;
int punch_or_zero(int fd, int mode, off_t offset, off_t length) {
  if (zeroing_punches.fetch_sub(1) <= 0) return os::kernel().fallocate(fd, mode, offset, length);
  const std::string zeros(static_cast<size_t>(length), '\0');
  return os::kernel().pwrite(fd, zeros.data(), zeros.size(), offset) == length ? 0 : -1;
}

TEST(f1_what_was_only_zeroed_is_punched_again) {
  FakeKernel fake;
  fake.calls.fallocate = punch_or_zero;
  fake.begin();
  Rig rig;
  const FileRange range = rig.allocate(8);
  rig.fill(range, 'x');
  zeroing_punches = 3;
  EXPECT(rig.references.dec_ref(pages(0, 6)).ok());
  EXPECT(rig.reclaimer.start().ok());
  EXPECT(rig.wait_for_reclaim());
  EXPECT_EQ(*rig.file->stored_bytes(), 2 * page_size());
  EXPECT(zeroing_punches < 0);
  EXPECT_EQ(rig.stats().punches, 1u);
  EXPECT_EQ(rig.allocate(6), pages(0, 6));
}

TEST(f1_what_cannot_be_split_is_not_waited_for_and_stays_in_the_account) {
  FakeKernel fake;
  fake.calls.fallocate = punch_or_zero;
  fake.begin();
  Rig rig;
  rig.fill(rig.allocate(8), 'x');
  EXPECT(*rig.scanner.update(nullptr));
  zeroing_punches = 1 << 30;
  EXPECT(rig.references.dec_ref(pages(0, 6)).ok());
  EXPECT(rig.reclaimer.start().ok());
  EXPECT(rig.wait_for_reclaim());
  EXPECT(zeroing_punches < 1 << 30);
  EXPECT_EQ(rig.state.ledger.snapshot().sum(), 8 * page_size());
  EXPECT_EQ(rig.verify(), std::nullopt);
  // Nor is it anyone's, with threads or without.
  rig.reclaimer.stop();
  EXPECT_EQ(rig.verify(), std::nullopt);
  EXPECT_EQ(rig.allocate(6), pages(8, 14));
  zeroing_punches = 0;
  EXPECT(rig.reclaimer.start().ok());
  const auto deadline = in_a_minute();
  while (rig.state.ledger.snapshot().sum() > 2 * page_size()) {
    if (!EXPECT(std::chrono::steady_clock::now() < deadline)) break;
    std::this_thread::yield();
  }
  EXPECT_EQ(rig.allocate(6), pages(0, 6));
}

TEST(f5_an_idle_reclaimer_starts_evictions_a_busy_one_does_not) {
  Rig rig;
  rig.allocate(4);
  rig.evictables.mark(1, {0, 10});
  EXPECT(os::install_fault({.name = "fallocate", .hold = true}));
  EXPECT(rig.reclaimer.start().ok());
  EXPECT(rig.references.dec_ref(pages(0, 1)).ok());
  while (!os::hold_reached()) std::this_thread::yield();
  {
    const FileLock lock(rig.state);
    rig.reclaimer.evict_when_idle();
    rig.reclaimer.evict_when_idle();
  }
  EXPECT(!busy(rig.evictables));
  os::let_go();
  EXPECT_EQ(rig.evictables.wait_for_due_user(), std::optional<uint64_t>(1));
  os::remove_fault();
  EXPECT(!os::hold_expired());
  EXPECT_EQ(rig.evictables.next(1), std::optional(FileRange{0, 10}));
  EXPECT_EQ(rig.evictables.next(1), std::nullopt);

  rig.evictables.mark(2, {0, 10});  // an idle one is woken
  {
    const FileLock lock(rig.state);
    rig.reclaimer.evict_when_idle();
  }
  EXPECT_EQ(rig.evictables.wait_for_due_user(), std::optional<uint64_t>(2));
}

FileRange allocate_huge(Rig& rig, uint64_t count) {
  return *rig.allocator.allocate({.length = count * huge_page_size(), .huge = HugeWish::kAsked},
                                 true);
}

// Frees each page of a huge page by itself, the last one when the others would have gone if they did not wait.
void free_page_by_page(Rig& rig, FileRange huge_page) {
  const uint64_t last = huge_page.end - page_size();
  for (uint64_t page = huge_page.start; page < last; page += page_size()) {
    EXPECT(rig.references.dec_ref({page, page + page_size()}).ok());
  }
  constexpr std::chrono::milliseconds kLonger{2};
  std::this_thread::sleep_for(kLonger);  // time: ten times as long as they gather
  EXPECT(rig.references.dec_ref({last, huge_page.end}).ok());
}

TEST(f7_a_huge_page_that_is_freed_page_by_page_goes_whole) {
  // This thread may be kept from running meanwhile, so that they do go, but not each time.
  bool whole = false;
  for (int attempt = 0; attempt < 100 && !whole; ++attempt) {
    Rig rig;
    const FileRange range = allocate_huge(rig, 2);
    EXPECT(rig.reclaimer.start().ok());
    rig.reclaimer.start_log();
    free_page_by_page(rig, {range.start, range.start + huge_page_size()});
    EXPECT(rig.wait_for_reclaim());
    whole = rig.reclaimer.log() == Ranges{{range.start, range.start + huge_page_size()}};
  }
  EXPECT(whole);
}

TEST(f7_parts_go_by_themselves_if_the_rest_does_not_come) {
  Rig rig;
  const FileRange range = allocate_huge(rig, 1);
  EXPECT(rig.reclaimer.start().ok());
  rig.reclaimer.start_log();
  const FileRange part{range.start + page_size(), range.start + 3 * page_size()};
  EXPECT(rig.references.dec_ref(part).ok());
  const auto deadline = in_a_minute();
  while (rig.stats().punched_bytes < part.length()) {
    if (!EXPECT(std::chrono::steady_clock::now() < deadline)) break;
    std::this_thread::yield();
  }
  EXPECT_EQ(rig.reclaimer.log(), Ranges{part});
}

// Others wait behind them, also where nothing can be below.
TEST(f7_it_sleeps_after_the_first_page_of_the_file_has_gone) {
  Rig rig;
  EXPECT_EQ(allocate_huge(rig, 2).start, 0u);
  EXPECT(os::install_fault({.name = "fallocate", .hold = true}));
  EXPECT(rig.reclaimer.start().ok());
  EXPECT(rig.references.dec_ref(pages(0, 1)).ok());
  while (!os::hold_reached()) std::this_thread::yield();
  EXPECT(rig.references.dec_ref(pages(3, 4)).ok());
  EXPECT(rig.references.dec_ref(pages(600, 601)).ok());
  os::let_go();
  const uint64_t before = rig.reclaimer.sleeps();
  const auto deadline = in_a_minute();
  while (rig.stats().punched_bytes < 3 * page_size()) {
    if (!EXPECT(std::chrono::steady_clock::now() < deadline)) break;
    std::this_thread::yield();
  }
  os::remove_fault();
  EXPECT(rig.reclaimer.sleeps() - before <= 10);
}

TEST(f7_when_memory_is_short_parts_go_and_count) {
  bool waited = false;
  for (int attempt = 0; attempt < 100 && !waited; ++attempt) {
    Rig rig;
    const FileRange range = allocate_huge(rig, 1);
    EXPECT(rig.reclaimer.start().ok());
    EXPECT(rig.references.dec_ref({range.start, range.start + page_size()}).ok());
    const FileLock lock(rig.state);
    waited = rig.state.pages.waste_part_bytes() > 0;
    EXPECT_EQ(rig.reclaimer.release_kept(in_a_minute()), waited ? page_size() : 0);
    EXPECT_EQ(rig.state.pages.waste_part_bytes(), 0u);
  }
  EXPECT(waited);
}

// Each eviction wakes it once. Were it not asleep in between, it would have looked for more in the meantime.
TEST(f5_it_sleeps_while_contents_of_freed_pages_arrive_though_they_are_waited_for) {
  Rig rig;
  const FileRange range = rig.allocate(2);
  {
    const FileLock lock(rig.state);
    rig.state.pages.pending().expect(range);
    EXPECT_EQ(rig.state.pages.pending().start(range).size(), 1u);
  }
  EXPECT(rig.references.dec_ref(range).ok());
  std::thread waiter([&] { EXPECT(rig.wait_for_reclaim()); });
  while (rig.reclaimer.waiters() == 0) std::this_thread::yield();
  EXPECT(rig.reclaimer.start().ok());
  constexpr uint64_t kTimes = 2000;
  const uint64_t before = rig.reclaimer.sleeps();
  for (uint64_t user = 1; user <= kTimes; ++user) {
    rig.evictables.mark(user, {0, 10});
    {
      const FileLock lock(rig.state);
      rig.reclaimer.evict_when_idle();
    }
    EXPECT_EQ(rig.evictables.wait_for_due_user(), std::optional(user));
  }
  EXPECT(rig.reclaimer.sleeps() - before <= kTimes + 10);
  EXPECT_EQ(rig.stats().punches, 0u);
  {
    const FileLock lock(rig.state);
    rig.state.pages.pending().arrived(range);
    rig.reclaimer.wake();
  }
  waiter.join();
  EXPECT_EQ(rig.stats().punched_bytes, range.length());
}

// Those who ask for them again and again would keep them for ever.
TEST(f6_nothing_waits_for_which_a_memory_limit_has_no_room) {
  FakeLevel level(1000 * kMib, 0);  // its headroom is 100 MiB
  Rig rig;
  EXPECT(rig.reclaimer.start().ok());
  const auto waste = [&] {
    const FileLock lock(rig.state);
    return rig.state.pages.waste_bytes() + rig.state.pages.releasing_bytes();
  };
  constexpr std::chrono::milliseconds kPause{1};
  bool gone = false;
  const auto deadline = in_a_minute();
  while (!gone && EXPECT(std::chrono::steady_clock::now() < deadline)) {
    level.use(0);
    const auto range = rig.allocator.allocate(
        {.length = 4 * kMib, .mode = AllocationMode::kAllocateAndCommit}, /*may_wait=*/true);
    if (!EXPECT(range.ok())) return;
    level.use(900 * kMib);
    EXPECT(rig.references.dec_ref(*range).ok());
    for (int i = 0; i < 100 && !gone; ++i) {
      std::this_thread::sleep_for(kPause);  // time: what may wait does so for longer
      gone = waste() == 0;
    }
  }
}

// So many allocations of the reclaimer's succeed after the first punch of a range, and then one fails.
int64_t left_after_punch = -1;
off_t last_punched = -1;
void run_out_after(off_t offset) {
  if (std::exchange(last_punched, offset) != offset) {
    native_tests::allocations_left = left_after_punch;
  }
}
int punch_and_run_out(int fd, int mode, off_t offset, off_t length) {
  const int result = os::kernel().fallocate(fd, mode, offset, length);
  run_out_after(offset);
  return result;
}
int refuse_and_run_out(int, int, off_t offset, off_t) {
  run_out_after(offset);
  return errno = EIO, -1;
}

TEST(it_survives_where_there_is_no_memory) {
  FakeKernel fake;
  fake.begin();
  for (auto* const punch : {punch_and_run_out, refuse_and_run_out}) {
    for (int64_t left = 0; left < 4; ++left) {
      fake.calls.fallocate = os::kernel().fallocate;
      Rig rig;
      const auto range = rig.allocator.allocate(
          {.length = huge_page_size(), .huge = HugeWish::kAsked}, /*may_wait=*/true);
      if (!EXPECT(range.ok())) return;
      rig.fill(*range, 'x');
      EXPECT(*rig.scanner.update(nullptr));
      // Every other page of a huge page: each is punched by itself, and is in lists then.
      const uint64_t first = range->start / page_size();
      const uint64_t end = range->end / page_size();
      for (uint64_t page = first; page < end; page += 2) {
        EXPECT(rig.references.dec_ref(pages(page, page + 1)).ok());
      }
      left_after_punch = left;
      fake.calls.fallocate = punch;
      EXPECT(rig.reclaimer.start().ok());
      EXPECT(rig.wait_for_reclaim());
      EXPECT_EQ(rig.stats().punches, (end - first) / 2);
      EXPECT(rig.all(pages(first, first + 1), '\0') && rig.all(pages(first + 1, first + 2), 'x'));
      EXPECT_EQ(rig.verify(), std::nullopt);
    }
  }
}

TEST(waiting_ends_with_the_work_or_with_the_deadline) {
  Rig rig;
  rig.allocate(4);
  EXPECT(rig.references.dec_ref(pages(0, 1)).ok());
  {
    const FileLock lock(rig.state);
    EXPECT(!rig.reclaimer.wait_until_done(kPast));
    EXPECT(!rig.reclaimer.pending());  // no thread is there to take it
  }
  EXPECT(rig.reclaimer.start().ok());
  {
    const FileLock lock(rig.state);
    EXPECT(rig.reclaimer.wait_until_done(in_a_minute()));
    EXPECT(rig.reclaimer.wait_until_done(kPast));
  }
  rig.reclaimer.pause();
  EXPECT(rig.references.dec_ref(pages(1, 2)).ok());
  {
    const FileLock lock(rig.state);
    EXPECT(!rig.reclaimer.pending());
    EXPECT(!rig.reclaimer.wait_until_done(kPast));
    EXPECT_EQ(rig.state.pages.waste_bytes(), page_size());
  }
  EXPECT_EQ(rig.reclaimer.waiters(), 0);
  rig.reclaimer.resume();
  EXPECT(rig.wait_for_reclaim());
  EXPECT_EQ(rig.stats().punches, 2u);
}

TEST(a_thread_that_waits_for_progress_hears_of_it) {
  Rig rig;
  rig.allocate(2);
  EXPECT(os::install_fault({.name = "fallocate", .hold = true}));
  EXPECT(rig.reclaimer.start().ok());
  EXPECT(rig.references.dec_ref(pages(0, 2)).ok());
  while (!os::hold_reached()) std::this_thread::yield();
  std::thread waiter([&] {
    const FileLock lock(rig.state);
    EXPECT(rig.reclaimer.pending());
    rig.reclaimer.wait_for_progress();
  });
  while (rig.reclaimer.waiters() == 0) std::this_thread::yield();
  EXPECT_EQ(rig.refs(0), 0u);
  os::let_go();
  waiter.join();
  os::remove_fault();
  EXPECT_EQ(rig.stats().punched_bytes, 2 * page_size());
}

TEST(waiting_ends_when_the_pages_are_forgotten) {
  Rig rig;
  EXPECT(rig.references.dec_ref(rig.allocate(1)).ok());  // and no thread takes it
  std::thread waiter([&] {
    const FileLock lock(rig.state);
    EXPECT(rig.reclaimer.wait_until_done(std::nullopt));
  });
  while (rig.reclaimer.waiters() == 0) std::this_thread::yield();
  {
    const FileLock lock(rig.state);
    rig.state.pages.clear();
    rig.reclaimer.notify_waiters();
  }
  waiter.join();
}

TEST(nothing_is_taken_after_the_end_and_all_after_a_new_beginning) {
  Rig rig;
  rig.allocate(2);
  EXPECT(rig.reclaimer.start().ok());
  rig.reclaimer.stop();
  EXPECT(rig.references.dec_ref(pages(0, 1)).ok());
  EXPECT_EQ(rig.stats().punches, 0u);
  EXPECT(rig.reclaimer.start().ok());
  EXPECT(rig.reclaimer.start().ok());  // runs already
  EXPECT(rig.wait_for_reclaim());
  rig.reclaimer.stop();
  rig.reclaimer.stop();
}

TEST(verify_finds_pages_that_no_thread_will_release) {
  Rig rig;
  EXPECT(rig.references.dec_ref(rig.allocate(1)).ok());
  EXPECT_EQ(rig.verify(), std::nullopt);
  const auto take = [&] {
    const FileLock lock(rig.state);
    return rig.state.pages.take_waste(kMib);
  };
  const auto taken = take();
  EXPECT_EQ(rig.verify(), "pages are taken, and no thread runs");
  const FileLock lock(rig.state);
  rig.state.pages.finish_release(*taken);
}

}  // namespace
}  // namespace pgalloc::reclaimer_test
