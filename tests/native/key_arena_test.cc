// Keys in shared memory: what is put there is there, and room that was freed is used again.

#include "cache/key_arena.h"

#include <map>
#include <vector>

#include "native/support.h"

namespace pgalloc::key_arena_test {
namespace {

using cache::KeyArena;
using cache::KeyBlocks;
using native_tests::Random;

TEST(random_keys_stay_what_they_are) {
  Random random(3);
  std::vector<KeyArena::Word> words(64 * KeyBlocks::kChunkWords);
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
    EXPECT_EQ(keys.blocks().verify(), std::nullopt);
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
  std::vector<KeyArena::Word> words(2 * KeyBlocks::kChunkWords);
  KeyArena keys(words.data(), words.size());
  std::vector<uint32_t> places;
  while (const auto place = keys.add(std::string(2000, 'x'))) places.push_back(*place);
  EXPECT_EQ(places.size(), 4u);  // two in each chunk
  EXPECT_EQ(keys.add(""), std::nullopt);
  EXPECT_EQ(keys.add(std::string(5000, 'y')), std::nullopt);
  keys.remove(places[0], 2000);
  EXPECT_EQ(keys.add(""), std::nullopt);  // the chunk has another key of that length
  keys.remove(places[1], 2000);
  EXPECT(keys.add("").has_value());
  keys.remove(places[2], 2000);
  keys.remove(places[3], 2000);
  EXPECT_EQ(keys.blocks().chunks_in_use(), 1u);
  EXPECT_EQ(keys.blocks().verify(), std::nullopt);
}

TEST(what_was_freed_serves_keys_of_any_length) {
  std::vector<KeyArena::Word> words(64 * KeyBlocks::kChunkWords);
  KeyArena keys(words.data(), words.size());
  for (const uint64_t length : {8, 100, 1000, 3000, 10'000, 200'000, 50, 262'144}) {
    std::vector<uint32_t> places;
    const std::string key(length, 'k');
    while (const auto place = keys.add(key)) places.push_back(*place);
    // All but a chunk's worth of it.
    EXPECT(places.size() * KeyArena::bytes_for(length) + KeyArena::bytes_for(length) +
               KeyBlocks::kChunkWords * 8 * 16 >
           words.size() * 8);
    EXPECT_EQ(keys.blocks().verify(), std::nullopt);
    for (size_t i = 0; i < places.size(); i += 2) keys.remove(places[i], length);
    EXPECT_EQ(keys.blocks().verify(), std::nullopt);
    for (size_t i = 1; i < places.size(); i += 2) keys.remove(places[i], length);
    EXPECT_EQ(keys.blocks().chunks_in_use(), 0u);
    EXPECT_EQ(keys.blocks().verify(), std::nullopt);
  }
}

TEST(a_class_has_room_for_its_lengths_and_little_more) {
  for (uint64_t length = 0; length < 100'000; ++length) {
    const uint64_t bytes = KeyArena::bytes_for(length);
    EXPECT(bytes >= length);
    EXPECT(bytes <=
           std::max<uint64_t>(length + 8, length > 2048 ? length + 4096 : length * 5 / 4 + 8));
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
