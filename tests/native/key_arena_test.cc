// Keys in shared memory: what is put there is there, and room that was freed is used again.

#include "cache/key_arena.h"

#include <map>
#include <vector>

#include "native/support.h"

namespace pgalloc::key_arena_test {
namespace {

using cache::KeyArena;
using native_tests::Random;

TEST(random_keys_stay_what_they_are) {
  Random random(3);
  std::vector<KeyArena::Word> words(20'000);
  KeyArena keys(words.data(), words.size());
  std::map<uint32_t, std::string> model;
  size_t refused = 0;
  for (int step = 0; step < 20'000; ++step) {
    if (!model.empty() && random.one_in(2)) {
      const auto some =
          std::next(model.begin(), static_cast<ptrdiff_t>(random.below(model.size())));
      keys.remove(some->first, some->second.size());
      model.erase(some);
    } else {
      std::string key(random.below(random.one_in(10) ? 3000 : 40), '\0');
      for (char& byte : key) byte = static_cast<char>(random.below(3));
      const auto place = keys.add(key);
      refused += !place;
      if (place) EXPECT(model.emplace(*place, key).second);
    }
    if (step % 100 != 0) continue;
    for (const auto& [place, key] : model) {
      EXPECT(keys.is(place, key.size(), key));
      EXPECT_EQ(keys.at(place, key.size()), key);
      EXPECT(!keys.is(place, key.size(), key + "x"));
      std::string other = key;
      if (other.empty()) continue;
      other.back() ^= 4;
      EXPECT(!keys.is(place, key.size(), other));
    }
  }
  EXPECT_EQ(refused, 0u);
}

TEST(what_is_full_refuses_until_something_is_freed) {
  std::vector<KeyArena::Word> words(4);
  KeyArena keys(words.data(), words.size());
  EXPECT_EQ(keys.add("12345678"), std::optional<uint32_t>(0));
  EXPECT_EQ(keys.add(std::string(9, 'x')), std::optional<uint32_t>(1));
  EXPECT_EQ(keys.add(std::string(9, 'y')), std::nullopt);
  EXPECT_EQ(keys.add(""), std::optional<uint32_t>(3));
  EXPECT_EQ(keys.add(""), std::nullopt);
  keys.remove(1, 9);
  EXPECT_EQ(keys.add(std::string(16, 'y')), std::optional<uint32_t>(1));
}

TEST(a_class_has_room_for_its_lengths_and_little_more) {
  uint64_t before = 0;
  for (uint64_t length = 0; length < 100'000; ++length) {
    const uint64_t bytes = KeyArena::bytes_for(length);
    EXPECT(bytes >= length && bytes >= before);
    EXPECT(bytes <= std::max<uint64_t>(length + 8, length * 5 / 4 + 8));
    before = bytes;
  }
  EXPECT(KeyArena::bytes_for(uint64_t{1} << 34) >= uint64_t{1} << 34);
}

TEST(a_place_that_cannot_be_has_no_key) {
  std::vector<KeyArena::Word> words(4);
  const KeyArena keys(words.data(), words.size());
  const std::string key(24, '\0');
  EXPECT(keys.is(1, 24, key));
  for (const uint32_t place : {2u, 4u, 5u, ~0u}) EXPECT(!keys.is(place, 24, key));
  EXPECT(!keys.is(0, ~uint64_t{0}, key));
}

}  // namespace
}  // namespace pgalloc::key_arena_test
