// The numbered rules of guard_plan.h.

#include "guard/guard_plan.h"

#include "native/support.h"

namespace pgalloc::guard_plan_test {
namespace {

using std::chrono::microseconds;

constexpr uint64_t kRate = uint64_t{1} << 30;       // a second
constexpr uint64_t kRatePerUs = kRate / 1'000'000;  // as the plan rounds it
constexpr uint64_t kPlenty = uint64_t{1} << 40;

void look(GuardPlan& plan, uint64_t available, uint64_t wanted_free) {
  plan.begin();
  plan.see(available, wanted_free);
  plan.end();
}

TEST(headroom_is_the_larger_of_share_and_bytes_but_at_most_half) {
  EXPECT_EQ((Headroom{0.25, 10}.of(1000)), 250u);
  EXPECT_EQ((Headroom{0.25, 300}.of(1000)), 300u);
  EXPECT_EQ((Headroom{0.25, 501}.of(1000)), 500u);
  EXPECT_EQ((Headroom{0.75, 0}.of(1000)), 500u);
  EXPECT_EQ((Headroom{0, 0}.of(1000)), 0u);
  EXPECT_EQ((Headroom{0.5, 100}.of(0)), 0u);
}

TEST(more_processors_fill_faster_up_to_eight) {
  EXPECT_EQ(fill_rate_per_s(0), fill_rate_per_s(1));
  EXPECT_EQ(fill_rate_per_s(2), 2 * fill_rate_per_s(1));
  EXPECT_EQ(fill_rate_per_s(8), 8 * fill_rate_per_s(1));
  EXPECT_EQ(fill_rate_per_s(64), fill_rate_per_s(8));
}

// Rule 1.
TEST(crowded_below_the_headroom_until_a_quarter_more_is_free) {
  GuardPlan plan(kRate);
  look(plan, 1000, 1000);
  EXPECT(!plan.crowded());
  EXPECT_EQ(plan.shortfall(), 0u);
  EXPECT_EQ(plan.slack(), 0u);

  look(plan, 999, 1000);
  EXPECT(plan.crowded());
  EXPECT_EQ(plan.shortfall(), 251u);

  look(plan, 1249, 1000);
  EXPECT(plan.crowded());
  EXPECT_EQ(plan.shortfall(), 1u);
  EXPECT_EQ(plan.slack(), 249u);

  look(plan, 1250, 1000);
  EXPECT(!plan.crowded());
  EXPECT_EQ(plan.shortfall(), 0u);

  look(plan, 1000, 1000);  // from above, the headroom itself is enough again
  EXPECT(!plan.crowded());
}

TEST(the_worst_of_the_levels_counts) {
  GuardPlan plan(kRate);
  plan.begin();
  plan.see(5000, 1000);
  plan.see(900, 1000);   // 350 short
  plan.see(1800, 2000);  // 700 short
  plan.end();
  EXPECT(plan.crowded());
  EXPECT_EQ(plan.shortfall(), 700u);
  EXPECT_EQ(plan.slack(), 0u);
  EXPECT_EQ(plan.available(), 900u);

  plan.begin();
  plan.see(5000, 1000);
  plan.see(9000, 2000);
  plan.end();
  EXPECT(!plan.crowded());
  EXPECT_EQ(plan.slack(), 4000u);
  EXPECT_EQ(plan.available(), 5000u);
}

TEST(critical_is_less_than_a_quarter_of_the_headroom) {
  GuardPlan plan(kRate);
  look(plan, 250, 1000);
  EXPECT(!plan.critical());
  look(plan, 249, 1000);
  EXPECT(plan.critical());
  look(plan, 250, 1000);
  EXPECT(!plan.critical());
}

// Rule 2.
TEST(looks_again_in_half_of_the_time_that_the_slack_lasts) {
  GuardPlan plan(kRate);
  look(plan, 1000 + kRate / 4, 1000);
  EXPECT_EQ(plan.delay(), microseconds(125'000));
  plan.begin();
  plan.see(1000 + kRate / 4, 1000);
  plan.see(1000 + kRate / 8, 1000);
  plan.end();
  EXPECT_EQ(plan.delay(), microseconds(62'500));
}

TEST(looks_neither_too_often_nor_too_rarely) {
  GuardPlan plan(kRate);
  look(plan, 1000, 1000);
  EXPECT_EQ(plan.delay(), GuardPlan::kDelayMin);
  look(plan, kRate / 500 + 1000 - 8, 1000);
  EXPECT_EQ(plan.delay(), GuardPlan::kDelayMin);
  look(plan, kPlenty, 1000);
  EXPECT_EQ(plan.delay(), GuardPlan::kDelayMax);
  plan.begin();  // no level at all
  plan.end();
  EXPECT_EQ(plan.delay(), GuardPlan::kDelayMax);
  EXPECT(!plan.crowded());
}

// Rule 3.
TEST(late_looks_enlarge_the_headroom_by_what_fills_meanwhile) {
  GuardPlan plan(kRate);
  plan.came_late(microseconds(1000));
  const uint64_t filled = kRatePerUs * 1000;
  const uint64_t wanted = 10 * filled;
  look(plan, wanted + filled, wanted);
  EXPECT(!plan.crowded());
  EXPECT_EQ(plan.slack(), 0u);
  look(plan, wanted + filled - 1, wanted);
  EXPECT(plan.crowded());
  EXPECT_EQ(plan.shortfall(), (wanted + filled) / 4 + 1);
}

TEST(late_looks_enlarge_it_at_most_to_twice) {
  GuardPlan plan(kRate);
  plan.came_late(microseconds(1'000'000));
  look(plan, 2000, 1000);
  EXPECT(!plan.crowded());
  EXPECT_EQ(plan.slack(), 0u);
  look(plan, 1999, 1000);
  EXPECT(plan.crowded());
}

TEST(lateness_fades_and_the_worst_counts_at_once) {
  GuardPlan plan(kRate);
  const uint64_t wanted = kRate;
  const auto lateness = [&] {
    look(plan, kPlenty, wanted);
    return (kPlenty - plan.slack() - wanted) / kRatePerUs;
  };
  EXPECT_EQ(lateness(), 0u);
  plan.came_late(microseconds(6400));
  EXPECT_EQ(lateness(), 6400u);
  plan.came_late(microseconds(0));
  EXPECT_EQ(lateness(), 6300u);
  plan.came_late(microseconds(6000));  // less than what is remembered
  EXPECT_EQ(lateness(), 6300u - 6300 / 64);
  plan.came_late(microseconds(9000));
  EXPECT_EQ(lateness(), 9000u);
  for (int look_number = 0; look_number < 1000; ++look_number) plan.came_late(microseconds(0));
  EXPECT(lateness() < 64);
}

// Rule 4.
TEST(looking_for_nothing_takes_a_ninth_of_the_time) {
  GuardPlan plan(kRate);
  look(plan, 10, 1000);
  EXPECT_EQ(plan.delay(), GuardPlan::kDelayMin);
  for (const bool nothing_unpinned : {true, false}) {
    plan.found_nothing(microseconds(5000), nothing_unpinned);
    EXPECT_EQ(plan.delay(), microseconds(40'000));
  }
  plan.found_nothing(microseconds(900'000), true);
  EXPECT_EQ(plan.delay(), GuardPlan::kDelayMax);
}

TEST(looks_get_rarer_while_nothing_is_unpinned) {
  GuardPlan plan(kRate);
  look(plan, 10, 1000);
  for (uint64_t expected_ms : {1, 2, 4, 8, 16, 32, 64, 128, 256, 256, 256}) {
    plan.found_nothing(microseconds(0), /*nothing_unpinned=*/true);
    EXPECT_EQ(plan.delay(), microseconds(expected_ms * 1000));
    look(plan, 10, 1000);
  }
  look(plan, 10'000, 1000);  // not crowded any more: it begins anew
  look(plan, 10, 1000);
  EXPECT_EQ(plan.delay(), GuardPlan::kDelayMin);
  plan.found_nothing(microseconds(0), true);
  EXPECT_EQ(plan.delay(), microseconds(1000));
}

TEST(with_something_unpinned_the_next_look_comes_before_the_limit) {
  GuardPlan plan(kRate);
  look(plan, kRate / 64, kRate);
  for (uint64_t expected_us : {1000, 2000, 4000, 7812, 7812}) {
    plan.found_nothing(microseconds(0), /*nothing_unpinned=*/false);
    EXPECT_EQ(plan.delay(), microseconds(expected_us));
  }
  look(plan, 0, kRate);
  plan.found_nothing(microseconds(0), false);
  EXPECT_EQ(plan.delay(), GuardPlan::kDelayMin);
}

}  // namespace
}  // namespace pgalloc::guard_plan_test
