// Section G, without callbacks: who is due, and with which range.

#include "file/evictables.h"

#include <thread>

#include "native/memory.h"
#include "native/support.h"

namespace pgalloc::evictables_test {
namespace {

using Ranges = std::vector<FileRange>;
constexpr auto kPast = std::chrono::steady_clock::time_point::min();

// Takes up the next eviction and sees it through.
Ranges evict(Evictables& evictables, Evictables::UserId expected) {
  EXPECT_EQ(evictables.wait_for_due_user(), std::optional(expected));
  Ranges ranges;
  while (const auto range = evictables.next(expected)) {
    ranges.push_back(*range);
    EXPECT_EQ(evictables.verify(), std::nullopt);
  }
  return ranges;
}

// Whether an eviction has begun that is not over.
bool busy(Evictables& evictables) {
  EXPECT_EQ(evictables.verify(), std::nullopt);
  return !evictables.wait_until_idle(kPast);
}

TEST(g2_g4_ranges_that_touch_are_one_and_the_highest_goes_first) {
  Evictables evictables;
  evictables.mark(1, {0, 10});
  evictables.mark(1, {20, 30});
  evictables.mark(1, {8, 12});
  evictables.mark(1, {12, 14});
  evictables.mark(1, {22, 24});
  evictables.start(1);
  EXPECT_EQ(evict(evictables, 1), (Ranges{{20, 30}, {0, 14}}));
  EXPECT(!evictables.knows(1));
  EXPECT(!busy(evictables));
}

TEST(g3_unmarking_may_split_and_forgets_users_without_ranges) {
  Evictables evictables;
  evictables.unmark(1, {0, 1});  // unknown
  evictables.mark(1, {0, 10});
  evictables.mark(2, {0, 10});
  evictables.unmark(1, {4, 6});
  evictables.start(1);
  EXPECT_EQ(evict(evictables, 1), (Ranges{{6, 10}, {0, 4}}));
  evictables.unmark(2, {0, 9});
  EXPECT(evictables.knows(2));
  evictables.unmark(2, {5, 20});
  EXPECT(!evictables.knows(2));
  evictables.mark(3, {0, 10});
  evictables.unmark_all(3);
  EXPECT(evictables.empty());
}

TEST(g4_a_user_has_one_eviction_at_a_time_that_includes_what_is_marked_meanwhile) {
  Evictables evictables;
  evictables.mark(1, {0, 10});
  evictables.start(1);
  evictables.start(1);
  evictables.start_all();
  EXPECT_EQ(evictables.wait_for_due_user(), std::optional<uint64_t>(1));
  EXPECT_EQ(evictables.next(1), std::optional(FileRange{0, 10}));
  evictables.mark(1, {40, 50});
  evictables.start(1);  // runs already
  evictables.unmark(1, {45, 50});
  EXPECT_EQ(evictables.next(1), std::optional(FileRange{40, 45}));
  EXPECT(evictables.knows(1));
  EXPECT(busy(evictables));
  EXPECT_EQ(evictables.next(1), std::nullopt);
  EXPECT(!busy(evictables));
  EXPECT(evictables.empty());
}

TEST(users_are_due_in_the_order_in_which_they_were_started) {
  Evictables evictables;
  for (uint64_t user : {3, 1, 2}) {
    evictables.mark(user, {0, user});
    evictables.start(user);
  }
  evictables.start(7);  // unknown
  EXPECT_EQ(evict(evictables, 3), (Ranges{{0, 3}}));
  EXPECT_EQ(evict(evictables, 1), (Ranges{{0, 1}}));
  EXPECT(busy(evictables));
  EXPECT_EQ(evict(evictables, 2), (Ranges{{0, 2}}));
  EXPECT(!busy(evictables));
}

TEST(memory_that_runs_out_only_puts_evictions_off) {
  constexpr uint64_t kUsers = 200;
  Evictables evictables;
  for (uint64_t user = 1; user <= kUsers; ++user) evictables.mark(user, {0, 10});
  uint64_t run_outs = 0;
  native_tests::fail_each_allocation([&] { evictables.start_all(); },
                                     [&] {
                                       ++run_outs;
                                       EXPECT_EQ(evictables.verify(), std::nullopt);
                                     });
  EXPECT(run_outs > 0);
  for (uint64_t i = 0; i < kUsers; ++i) {
    const auto user = evictables.wait_for_due_user();
    while (evictables.next(*user)) {
    }
  }
  EXPECT(!busy(evictables));
}

TEST(a_pause_sends_threads_home_and_keeps_what_is_due) {
  Evictables evictables;
  evictables.mark(1, {0, 10});
  evictables.start(1);
  evictables.pause();
  EXPECT_EQ(evictables.wait_for_due_user(), std::nullopt);
  EXPECT(busy(evictables));
  evictables.resume();
  EXPECT_EQ(evict(evictables, 1), (Ranges{{0, 10}}));
}

TEST(after_the_end_nothing_begins_and_what_runs_finds_nothing_more) {
  Evictables evictables;
  evictables.mark(1, {0, 10});
  evictables.mark(2, {0, 10});
  evictables.start(1);
  EXPECT_EQ(evictables.wait_for_due_user(), std::optional<uint64_t>(1));
  evictables.start(2);  // no thread has taken it up
  evictables.shut_down();
  EXPECT_EQ(evictables.wait_for_due_user(), std::nullopt);
  EXPECT(busy(evictables));
  EXPECT_EQ(evictables.next(1), std::nullopt);
  EXPECT(!busy(evictables));
  evictables.mark(3, {0, 10});
  EXPECT(evictables.empty());
}

TEST(a_waiting_thread_hears_of_the_next_user_and_of_the_end) {
  Evictables evictables;
  Ranges ranges;
  bool ended = false;
  std::thread evictor([&] {
    while (const auto user = evictables.wait_for_due_user()) {
      while (const auto range = evictables.next(*user)) ranges.push_back(*range);
    }
    ended = true;
  });
  evictables.mark(1, {0, 10});
  evictables.start(1);
  EXPECT(evictables.wait_until_idle(std::nullopt));
  evictables.shut_down();
  evictor.join();
  EXPECT(ended);
  EXPECT_EQ(ranges, (Ranges{{0, 10}}));
}

}  // namespace
}  // namespace pgalloc::evictables_test
