// When values expire.

#include "cache/expiries.h"

#include <algorithm>
#include <map>

#include "native/memory.h"
#include "native/support.h"

namespace pgalloc::cache_expiries_test {
namespace {

using cache::Expiries;
using native_tests::Random;
using Times = std::vector<std::pair<uint64_t, uint64_t>>;

void add(Expiries& expiries, uint64_t expires_ns, uint64_t entry) {
  expiries.reserve(1);
  expiries.add(expires_ns, entry);
}
Times take_until(Expiries& expiries, uint64_t now_ns) {
  Times taken;
  expiries.take_until(now_ns, SIZE_MAX,
                      [&](uint64_t at, uint64_t entry) { taken.emplace_back(at, entry); });
  return taken;
}

TEST(times_come_in_order_and_those_that_are_now_have_come) {
  Expiries expiries;
  EXPECT(expiries.empty());
  EXPECT_EQ(take_until(expiries, UINT64_MAX), Times{});
  for (const uint64_t at : {5, 3, 9, 3}) add(expiries, at, at * 10);
  EXPECT_EQ(expiries.size(), 4u);
  EXPECT_EQ(take_until(expiries, 2), Times{});
  EXPECT_EQ(take_until(expiries, 5), (Times{{3, 30}, {3, 30}, {5, 50}}));
  EXPECT(!expiries.empty());
  expiries.clear();
  EXPECT(expiries.empty());
  EXPECT_EQ(take_until(expiries, UINT64_MAX), Times{});
}

TEST(what_does_not_hold_is_never_much) {
  Expiries expiries;
  // One entry gets a new time again and again.
  for (uint64_t at = 1; at <= 10000; ++at) {
    add(expiries, at, 7);
    expiries.tidy(1, [&](uint64_t expires_ns, uint64_t) { return expires_ns == at; });
    EXPECT(expiries.size() <= 100);
  }
  Times taken = take_until(expiries, 20000);
  EXPECT_EQ(taken.back(), std::pair(uint64_t{10000}, uint64_t{7}));
}

// The same time for the same entry again, as a clock that stands still gives it, and a restore.
TEST(a_time_that_was_given_twice_is_kept_once) {
  Expiries expiries;
  uint64_t asked = 0;
  for (int i = 0; i < 10000; ++i) {
    add(expiries, 1000, 7);
    expiries.tidy(1, [&](uint64_t, uint64_t) { return ++asked, true; });
    if (!EXPECT(expiries.size() <= 100)) return;
  }
  EXPECT(asked <= 30000);  // not of all times each time
  EXPECT_EQ(take_until(expiries, 1000).front(), std::pair(uint64_t{1000}, uint64_t{7}));
}

TEST(random_times_expire_as_a_reference_says) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    Random random(seed);
    Expiries expiries;
    std::map<uint64_t, uint64_t> expires;  // by entry
    uint64_t now = 0;
    const auto holds = [&](uint64_t at, uint64_t entry) {
      const auto found = expires.find(entry);
      return found != expires.end() && found->second == at;
    };
    for (int step = 0; step < 3000; ++step) {
      const uint64_t entry = random.below(50);
      if (random.one_in(4)) {
        expires.erase(entry);
      } else {
        expires[entry] = now + random.between(1, 100);
        add(expiries, expires[entry], entry);
      }
      if (random.one_in(3)) now += random.below(10);
      Times expected;
      for (const auto& [its_entry, at] : expires) {
        if (at <= now) expected.emplace_back(at, its_entry);
      }
      std::sort(expected.begin(), expected.end());
      Times taken;
      expiries.take_until(now, SIZE_MAX, [&](uint64_t at, uint64_t its_entry) {
        if (!holds(at, its_entry)) return;
        expires.erase(its_entry);
        taken.emplace_back(at, its_entry);
      });
      std::sort(taken.begin(), taken.end());
      EXPECT_EQ(taken, expected);
      expiries.tidy(expires.size(), holds);
      EXPECT(expiries.size() >= expires.size());
      EXPECT(expiries.size() <= expires.size() * 5 / 4 + 64);
      if (native_tests::failures > 0) return;
    }
  }
}

TEST(without_memory_nothing_is_reserved_and_what_is_needs_none) {
  Expiries expiries;
  for (uint64_t i = 0; i < 200; ++i) {
    native_tests::fail_each_allocation([&] { expiries.reserve(1); },
                                       [&] { EXPECT_EQ(expiries.size(), i); });
    native_tests::all_fail = true;
    expiries.add(1000 - i, i);
    expiries.tidy(i + 1, [](uint64_t, uint64_t) { return true; });
    native_tests::all_fail = false;
  }
  native_tests::all_fail = true;
  uint64_t last = 0;
  expiries.take_until(1000, SIZE_MAX, [&](uint64_t at, uint64_t) { last = at; });
  expiries.clear();
  native_tests::all_fail = false;
  EXPECT_EQ(last, 1000u);
}

}  // namespace
}  // namespace pgalloc::cache_expiries_test
