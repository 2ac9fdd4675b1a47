// Time that a test moves.

#include "base/clock.h"

#include "native/support.h"

namespace pgalloc::clock_test {
namespace {

using std::chrono::hours;
using std::chrono::nanoseconds;

TEST(it_stands_still_but_for_ticks_and_steps) {
  Clock clock;
  clock.use_manual(nanoseconds(5), nanoseconds(0));
  EXPECT_EQ(clock.now(), nanoseconds(5));
  EXPECT_EQ(clock.now(), nanoseconds(5));
  clock.advance(nanoseconds(10));
  EXPECT_EQ(clock.now(), nanoseconds(15));
  clock.use_manual(nanoseconds(100), nanoseconds(7));
  EXPECT_EQ(clock.now(), nanoseconds(100));
  EXPECT_EQ(clock.now(), nanoseconds(107));
}

TEST(afterwards_it_is_the_machines_again) {
  Clock clock;
  const nanoseconds before = clock.now();
  clock.use_manual(before + hours(1000), nanoseconds(0));
  clock.use_real();
  const nanoseconds after = clock.now();
  EXPECT(before <= after);
  EXPECT(after < before + hours(1000));
}

}  // namespace
}  // namespace pgalloc::clock_test
