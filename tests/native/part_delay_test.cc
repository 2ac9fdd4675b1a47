// Row F7.

#include "file/part_delay.h"

#include "native/support.h"

namespace pgalloc::part_delay_test {
namespace {

using std::chrono::milliseconds;
using Time = PartDelay::Time;

constexpr uint64_t kFew = 4096;
constexpr auto kDelay = PartDelay::kDelay;
constexpr std::optional<uint64_t> kNone;
constexpr std::optional<uint64_t> kAll = UINT64_MAX;

Time at(milliseconds since) { return Time(std::chrono::hours(1) + since); }

TEST(f7_parts_wait_for_as_long_as_the_delay) {
  PartDelay parts;
  EXPECT(!parts.next_due());
  EXPECT_EQ(parts.due_below(0, false, at(milliseconds(0))), kNone);
  EXPECT(!parts.next_due());
  EXPECT_EQ(parts.due_below(kFew, false, at(milliseconds(0))), kNone);
  EXPECT(parts.next_due() == at(kDelay));
  // Those that come later do not put it off.
  EXPECT_EQ(parts.due_below(2 * kFew, false, at(kDelay - milliseconds(1))), kNone);
  EXPECT_EQ(parts.due_below(2 * kFew, false, at(kDelay)), kAll);
}

TEST(f7_those_that_come_meanwhile_do_not_delay_those_that_go) {
  PartDelay parts;
  (void)parts.due_below(kFew, false, at(milliseconds(0)));
  EXPECT_EQ(parts.due_below(kFew, false, at(kDelay)), kAll);
  parts.taken({8 * kFew, 9 * kFew});
  EXPECT_EQ(parts.due_below(kFew, false, at(kDelay)), std::optional(8 * kFew));
  parts.taken({kFew, 2 * kFew});
  EXPECT_EQ(parts.due_below(kFew, false, at(kDelay)), std::optional(kFew));
  parts.taken({0, kFew});  // the first of the file: nothing is below
  EXPECT_EQ(parts.due_below(kFew, false, at(kDelay)), std::optional<uint64_t>(0));
  parts.wait_anew(at(kDelay));
  EXPECT_EQ(parts.due_below(kFew, false, at(kDelay)), kNone);
  EXPECT_EQ(parts.due_below(kFew, false, at(2 * kDelay)), kAll);
}

TEST(f7_no_more_than_the_maximum_waits_and_nothing_if_it_must_not) {
  PartDelay parts;
  EXPECT_EQ(parts.due_below(PartDelay::kBytesMax, false, at(milliseconds(0))), kNone);
  EXPECT_EQ(parts.due_below(PartDelay::kBytesMax + kFew, false, at(milliseconds(0))), kAll);
  PartDelay others;
  EXPECT_EQ(others.due_below(kFew, true, at(milliseconds(0))), kAll);
  // The first in time that was not taken then is due still, and the next after it is not.
  others.taken({8 * kFew, 9 * kFew});
  EXPECT_EQ(others.due_below(kFew, false, at(milliseconds(0))), std::optional(8 * kFew));
  others.wait_anew(at(milliseconds(0)));
  EXPECT_EQ(others.due_below(kFew, false, at(milliseconds(1))), kNone);
}

TEST(f7_without_parts_nothing_is_due) {
  PartDelay parts;
  (void)parts.due_below(kFew, false, at(milliseconds(0)));
  EXPECT_EQ(parts.due_below(0, false, at(milliseconds(1))), kNone);
  EXPECT(!parts.next_due());
  EXPECT_EQ(parts.due_below(kFew, false, at(kDelay)), kNone);
  EXPECT(parts.next_due() == at(2 * kDelay));
}

TEST(f7_a_sleeping_thread_hears_of_the_first_and_of_too_many) {
  PartDelay parts;
  EXPECT(!parts.is_news(0) && parts.is_news(kFew));
  (void)parts.due_below(kFew, false, at(milliseconds(0)));
  EXPECT(!parts.is_news(PartDelay::kBytesMax) && parts.is_news(PartDelay::kBytesMax + kFew));
}

}  // namespace
}  // namespace pgalloc::part_delay_test
