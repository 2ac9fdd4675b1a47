// Row F6.

#include "file/release_budget.h"

#include "native/support.h"

namespace pgalloc::release_budget_test {
namespace {

using Time = ReleaseBudget::Time;
constexpr auto kSlice = ReleaseBudget::kSlice;
constexpr uint64_t kMib = uint64_t{1} << 20;

// The middle of a slice.
Time slice(int64_t number) { return Time(kSlice * number + kSlice / 2); }

TEST(f6_as_much_as_was_asked_for_lately_may_wait) {
  ReleaseBudget budget;
  EXPECT_EQ(budget.bytes(0, slice(100)), 0u);
  budget.asked(3 * kMib, 10 * kMib, slice(100));
  budget.asked(2 * kMib, 10 * kMib, slice(101));
  EXPECT_EQ(budget.bytes(0, slice(101)), 5 * kMib);
  EXPECT_EQ(budget.next_change(), Time(kSlice * 102));
  EXPECT_EQ(budget.bytes(0, slice(103)), 5 * kMib);
  EXPECT_EQ(budget.bytes(0, slice(104)), 2 * kMib);
  EXPECT_EQ(budget.bytes(0, slice(105)), 0u);
}

TEST(f6_what_waits_and_what_is_used_are_no_more_than_was_used) {
  ReleaseBudget budget;
  budget.asked(8 * kMib, 10 * kMib, slice(1));
  budget.asked(8 * kMib, 6 * kMib, slice(2));
  EXPECT_EQ(budget.most_used(), 10 * kMib);
  EXPECT_EQ(budget.bytes(4 * kMib, slice(2)), 6 * kMib);
  EXPECT_EQ(budget.bytes(10 * kMib, slice(2)), 0u);
  EXPECT_EQ(budget.bytes(11 * kMib, slice(2)), 0u);
  EXPECT_EQ(budget.bytes(4 * kMib, slice(5)), 2 * kMib);
}

TEST(f6_silence_of_any_length_ends_it) {
  for (const int64_t silence : {4, 5, 7, 8, 1000, 1 << 30}) {
    ReleaseBudget budget;
    budget.asked(kMib, kMib, slice(7));
    EXPECT_EQ(budget.bytes(0, slice(7 + silence)), 0u);
    budget.asked(kMib, kMib, slice(7 + silence));
    EXPECT_EQ(budget.bytes(0, slice(7 + silence)), kMib);
  }
}

TEST(f6_a_clock_that_another_thread_read_before_changes_nothing) {
  ReleaseBudget budget;
  budget.asked(kMib, 9 * kMib, slice(9));
  budget.asked(kMib, 9 * kMib, slice(8));
  EXPECT_EQ(budget.bytes(0, slice(8)), 2 * kMib);
  EXPECT_EQ(budget.bytes(0, slice(12)), 2 * kMib);
  EXPECT_EQ(budget.bytes(0, slice(13)), 0u);
}

TEST(f6_while_memory_is_short_nothing_waits) {
  ReleaseBudget budget;
  budget.asked(kMib, kMib, slice(1));
  budget.refuse_until(slice(6));
  EXPECT_EQ(budget.bytes(0, slice(1)), 0u);
  budget.asked(kMib, kMib, slice(5));
  EXPECT_EQ(budget.bytes(0, slice(5)), 0u);
  budget.asked(kMib, kMib, slice(6));
  EXPECT_EQ(budget.bytes(0, slice(6)), kMib);
}

}  // namespace
}  // namespace pgalloc::release_budget_test
