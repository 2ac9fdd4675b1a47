#include "pages/ghosts.h"

#include "native/support.h"

namespace pgalloc::ghosts_test {
namespace {

TEST(remembers_nothing_before_it_is_asked_to) {
  Ghosts ghosts;
  ghosts.add(1);
  EXPECT(!ghosts.take(1));
}

TEST(a_key_is_taken_once) {
  Ghosts ghosts;
  ghosts.remember(10);
  ghosts.add(0);
  ghosts.add(7);
  EXPECT(!ghosts.take(8));
  EXPECT(ghosts.take(7));
  EXPECT(!ghosts.take(7));
  EXPECT(ghosts.take(0));
}

TEST(forgets_a_key_after_as_many_departures_as_it_remembers) {
  for (const uint64_t window : {1, 2, 10, 60}) {
    Ghosts ghosts;
    ghosts.remember(window);
    for (uint64_t key = 0; key <= window; ++key) ghosts.add(key);
    EXPECT(!ghosts.take(0));
    EXPECT(ghosts.take(1));
    if (window > 1) EXPECT(ghosts.take(window));
  }
}

TEST(a_smaller_window_forgets_sooner_and_a_larger_one_later) {
  Ghosts ghosts;
  ghosts.remember(100);
  for (uint64_t key = 0; key < 50; ++key) ghosts.add(key);
  ghosts.remember(10);
  EXPECT(!ghosts.take(39));
  EXPECT(ghosts.take(40));
  ghosts.remember(100);
  EXPECT(ghosts.take(0));
}

TEST(remembers_about_as_many_keys_as_asked_and_no_others) {
  constexpr uint64_t kKeys = 10'000;
  Ghosts ghosts;
  ghosts.remember(kKeys);
  for (uint64_t key = 0; key < kKeys; ++key) ghosts.add(key);
  uint64_t strangers = 0;
  for (uint64_t key = kKeys; key < 2 * kKeys; ++key) strangers += ghosts.take(key);
  EXPECT_EQ(strangers, 0u);
  uint64_t remembered = 0;
  for (uint64_t key = 0; key < kKeys; ++key) remembered += ghosts.take(key);
  EXPECT(remembered > kKeys * 9 / 10);
  EXPECT(remembered <= kKeys);
}

TEST(a_full_set_loses_its_oldest_key) {
  Ghosts ghosts;
  ghosts.remember(100);  // 16 sets of 8
  for (uint64_t key = 0; key < 1000; ++key) ghosts.add(key);
  uint64_t recent = 0;
  for (uint64_t key = 980; key < 1000; ++key) recent += ghosts.take(key);
  EXPECT_EQ(recent, 20u);
}

}  // namespace
}  // namespace pgalloc::ghosts_test
