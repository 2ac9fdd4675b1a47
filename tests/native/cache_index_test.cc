// The index of a cache: against a map, and read by other threads while it changes.

#include <array>
#include <atomic>
#include <map>
#include <thread>

#include "cache/index_reader.h"
#include "cache/index_writer.h"
#include "cache/shared_memory.h"
#include "native/support.h"

namespace pgalloc::cache_index_test {
namespace {

using cache::Bucket;
using cache::Entry;
using cache::Fields;
using cache::Holds;
using cache::Index;
using cache::SharedMemory;
using native_tests::Random;

using Reader = cache::IndexReader<SharedMemory>;
using Writer = cache::IndexWriter<SharedMemory>;
using Word = Holds<SharedMemory>::Word;

// An index in memory of this process.
class Lines {
 public:
  Lines(uint64_t buckets, uint64_t entries) : buckets_(buckets), entries_(entries) {}
  Index<SharedMemory> index() {
    return {.table = &table_,
            .buckets = buckets_.data(),
            .bucket_count = buckets_.size(),
            .entries = entries_.data(),
            .entry_count = entries_.size()};
  }

 private:
  std::atomic<uint64_t> table_{0};
  std::vector<Bucket<SharedMemory>> buckets_;
  std::vector<Entry<SharedMemory>> entries_;
};

// Few hashes, so that many keys have the same one.
uint32_t hash_of(uint64_t key) { return static_cast<uint32_t>((key % 5) << 29 | key % 3); }

// A key is a number, and lies in `place`.
Fields value_of(uint64_t key, uint64_t value) {
  return {.place = key, .length = value, .hash = hash_of(key), .key_length = 8, .holder = 1};
}
auto is_key(uint64_t key) {
  return [key](const Fields& fields) { return fields.place == key; };
}

TEST(random_changes_are_those_of_a_map) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Random random(seed);
    Lines lines(7, 40);
    std::vector<Word> words(4);
    Writer writer(lines.index(), 0);
    Reader reader(lines.index(), {words.data(), words.size()});
    const Holds<SharedMemory> readings(words.data(), words.size());
    std::map<uint64_t, std::pair<uint64_t, uint64_t>> model;  // key: number, value
    for (uint64_t step = 1; step <= 2000; ++step) {
      const uint64_t key = random.below(40);
      const auto known = model.find(key);
      const auto number = writer.find(hash_of(key), is_key(key));
      EXPECT_EQ(number.has_value(), known != model.end());
      if (known == model.end()) {
        auto added = writer.add(value_of(key, step));
        if (!added && writer.grow()) added = writer.add(value_of(key, step));
        if (added) model[key] = {*added, step};
      } else if (random.one_in(2)) {
        EXPECT_EQ(*number, known->second.first);
        writer.remove(*number);
        model.erase(known);
      } else if (const auto successor = writer.replace(*number, value_of(key, step))) {
        known->second = {*successor, step};
      }
      EXPECT_EQ(writer.size(), model.size());
    }
    for (uint64_t key = 0; key < 40; ++key) {
      const auto held = reader.hold(hash_of(key), is_key(key));
      const auto copied = reader.copy(hash_of(key), is_key(key));
      EXPECT_EQ(held.has_value(), model.contains(key));
      EXPECT_EQ(copied.has_value(), model.contains(key));
      if (!held || !copied) continue;
      EXPECT_EQ(held->length, model[key].second);
      EXPECT_EQ(copied->length, model[key].second);
      EXPECT(readings.any(1));
      reader.let_go(*held);
    }
    EXPECT(!readings.any(1));
    EXPECT_EQ(readings.hits(1), 2 * model.size());
  }
}

TEST(a_value_that_is_held_is_not_used_again) {
  Lines lines(1, 4);
  std::vector<Word> words(4);
  Writer writer(lines.index(), 0);
  Reader reader(lines.index(), {words.data(), words.size()});
  writer.readers().push_back({words.data(), words.size()});
  const auto number = writer.add(value_of(3, 1));
  const auto held = reader.hold(hash_of(3), is_key(3));
  EXPECT(held.has_value());
  writer.remove(*number);
  EXPECT(!writer.may_reuse(1));
  EXPECT(!reader.hold(hash_of(3), is_key(3)));
  reader.let_go(*held);
  EXPECT(writer.may_reuse(1));
}

TEST(numbers_that_cannot_be_are_misses) {
  Lines lines(4, 2);
  std::vector<Word> words(1);
  auto index = lines.index();
  Writer writer(index, 1);
  Reader reader(index, {words.data(), words.size()});
  EXPECT(writer.add(value_of(3, 1)).has_value());
  EXPECT(!reader.hold(hash_of(3), is_key(3)));  // there is no holder 1
  EXPECT(reader.copy(hash_of(3), is_key(3)).has_value());
  index.buckets[0].slots[0].store(hash_of(3) | 3);
  EXPECT(!reader.copy(hash_of(3), is_key(3)));
  for (const uint64_t table :
       {uint64_t{63} << 56, uint64_t{1} << 40, ~uint64_t{0}, uint64_t{3} << 56}) {
    index.table->store(table);
    EXPECT(!reader.copy(hash_of(3), is_key(3)));
  }
}

// Each value is two words in "pages" that are used again as soon as no one holds them: the number of the key, and what
// was written last. A reader that sees anything else has read pages of another value.
TEST(readers_see_whole_values_of_their_key_while_others_take_their_place) {
  constexpr uint64_t kKeys = 20;
  constexpr uint32_t kHolders = 32;
  Lines lines(63, 64);
  std::vector<Word> words(kHolders);
  std::vector<std::array<std::atomic<uint64_t>, 2>> pages(kHolders);
  Writer writer(lines.index(), 0);
  writer.readers().push_back({words.data(), words.size()});
  std::atomic<bool> ended{false};
  std::atomic<uint64_t> hits{0};
  const auto matches = [&](uint64_t key, const Fields& fields) {
    return fields.holder < kHolders &&
           pages[fields.holder][0].load(std::memory_order_relaxed) == key;
  };
  std::vector<std::thread> threads;
  for (uint64_t thread = 0; thread < 2; ++thread) {
    threads.emplace_back([&, thread] {
      Reader reader(lines.index(), {words.data(), words.size()});
      for (uint64_t i = thread; !ended; ++i) {
        const uint64_t key = i % kKeys;
        const auto held =
            reader.hold(hash_of(key), [&](const Fields& fields) { return matches(key, fields); });
        if (held) {
          ++hits;
          EXPECT_EQ(pages[held->holder][0].load(std::memory_order_relaxed), key);
          EXPECT_EQ(pages[held->holder][1].load(std::memory_order_relaxed), held->length);
          reader.let_go(*held);
        }
        uint64_t copied = 0;
        const auto found = reader.copy(hash_of(key), [&](const Fields& fields) {
          if (!matches(key, fields)) return false;
          copied = pages[fields.holder][1].load(std::memory_order_relaxed);
          return true;
        });
        if (found) EXPECT_EQ(copied, found->length);
      }
    });
  }
  std::vector<uint32_t> limbo;
  std::vector<uint32_t> vacant;
  for (uint32_t holder = 0; holder < kHolders; ++holder) vacant.push_back(holder);
  Random random(7);
  for (uint64_t step = 1; step <= 1'000'000; ++step) {
    const uint64_t key = random.below(kKeys);
    const auto number =
        writer.find(hash_of(key), [&](const Fields& fields) { return matches(key, fields); });
    if (number) limbo.push_back(writer.fields(*number).holder);
    if (number && (vacant.empty() || random.one_in(4))) {
      writer.remove(*number);
    } else if (!vacant.empty()) {
      const uint32_t holder = vacant.back();
      vacant.pop_back();
      pages[holder][0].store(key, std::memory_order_relaxed);
      pages[holder][1].store(step, std::memory_order_relaxed);
      Fields fields = value_of(key, step);
      fields.holder = holder;
      if (number) {
        EXPECT(writer.replace(*number, fields).has_value());
      } else if (!writer.add(fields)) {
        EXPECT(writer.grow() && writer.add(fields).has_value());
      }
    }
    std::erase_if(limbo, [&](uint32_t holder) {
      if (!writer.may_reuse(holder)) return false;
      vacant.push_back(holder);
      return true;
    });
  }
  ended = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT(hits > 0);
}

}  // namespace
}  // namespace pgalloc::cache_index_test
