// The protocol of a cache's index: each execution of a reader and the writer that the memory model allows, with either
// dying before any of its operations. Weaker orders than those that the code states are found.
//
// Two words stand for the pages of two values. A value says in its length what is in its pages.

#include "cache/index_reader.h"
#include "cache/index_writer.h"
#include "native/explorer.h"
#include "native/test.h"

namespace pgalloc::cache_protocol_test {
namespace {

using cache::Bucket;
using cache::Entry;
using cache::Fields;
using cache::Holds;
using cache::Index;
using cache::IndexReader;
using cache::IndexWriter;
using native_tests::Exploration;
using native_tests::explore;
using native_tests::Explored;
using native_tests::Scenario;
using Order = std::memory_order;

// The orders as they are stated.
struct Stated {
  static constexpr Order of(Order order) { return order; }
  static constexpr bool kFences = true;
};
// Planted bugs.
struct NoSeqCst {
  static constexpr Order of(Order order) {
    return order == Order::seq_cst ? Order::acq_rel : order;
  }
  static constexpr bool kFences = true;
};
struct NoAcquire {
  static constexpr Order of(Order order) {
    return order == Order::acquire ? Order::relaxed : order;
  }
  static constexpr bool kFences = true;
};
struct NoRelease {
  static constexpr Order of(Order order) {
    return order == Order::release ? Order::relaxed : order;
  }
  static constexpr bool kFences = true;
};
struct NoFences {
  static constexpr Order of(Order order) { return order; }
  static constexpr bool kFences = false;
};

template <class Orders>
struct Memory {
  static constexpr size_t kSlotsOfBucket = 2;

  template <class T>
  class Atomic {
   public:
    Atomic(T value = T()) : atomic_(value) {}
    T load(Order order) const {
      const Order its = Orders::of(order);
      return atomic_.load(its == Order::acq_rel ? Order::acquire : its);
    }
    void store(T value, Order order) {
      const Order its = Orders::of(order);
      atomic_.store(value, its == Order::acq_rel ? Order::release : its);
    }
    T fetch_add(T value, Order order) { return atomic_.fetch_add(value, Orders::of(order)); }
    T fetch_sub(T value, Order order) { return atomic_.fetch_sub(value, Orders::of(order)); }

   private:
    Explored::Atomic<T> atomic_;
  };

  static void fence(Order order) {
    if (Orders::kFences) Explored::fence(order);
  }
};

constexpr uint32_t kHash = 0;
constexpr uint32_t kKey = 1, kOtherKey = 2;  // where they lie

bool is_key(const Fields& fields) { return fields.key_place == kKey; }

template <class Orders>
struct Scene {
  using M = Memory<Orders>;

  typename M::template Atomic<uint64_t> table;
  Bucket<M> buckets[3];
  Entry<M> entries[2];
  typename M::template Atomic<uint64_t> words[2];
  Explored::Atomic<uint64_t> pages[2];
  const Index<M> index{&table, buckets, 3, entries, 2};
  IndexWriter<M> writer{index, 0};

  Scene() {
    writer.readers().push_back(Holds<M>(words, 2));
    pages[0].store(1, Order::relaxed);
    writer.add(value(kKey, 0, 1));
  }
  static Fields value(uint32_t key, uint32_t holder, uint64_t stamp) {
    return {.length = stamp, .hash = kHash, .key_place = key, .holder = holder};
  }
  void write(uint32_t holder, uint64_t stamp) { pages[holder].store(stamp, Order::relaxed); }

  // What a reader found is what the writer put there, and stays it. Whether anything was found.
  bool hold() {
    IndexReader<M> reader(index, Holds<M>(words, 2));
    const auto found = reader.hold(kHash, is_key);
    if (!found) return false;
    for (int i = 0; i < 2; ++i) {
      Scenario::check(pages[found->holder].load(Order::relaxed) == found->length,
                      "a value that is held is what it was");
    }
    reader.let_go(*found);
    return true;
  }
  bool copy() {
    IndexReader<M> reader(index, Holds<M>(words, 2));
    uint64_t copied = 0;
    const auto found = reader.copy(kHash, [&](const Fields& fields) {
      if (!is_key(fields) || fields.holder > 1) return false;
      copied = pages[fields.holder].load(Order::relaxed);
      return true;
    });
    if (found) Scenario::check(copied == found->length, "what was copied is the value");
    return found.has_value();
  }

  // What the writer does.
  void replace() {
    write(1, 2);
    writer.replace(0, value(kKey, 1, 2));
    if (writer.may_reuse(0)) write(0, 3);
  }
  // The first entry and its pages come back, for another value of the key.
  void replace_twice() {
    write(1, 2);
    const auto second = writer.replace(0, value(kKey, 1, 2));
    if (!writer.may_reuse(0)) return;
    write(0, 3);
    writer.replace(*second, value(kKey, 0, 3));
    if (writer.may_reuse(1)) write(1, 5);
  }
  void remove_and_add() {
    writer.remove(0);
    if (!writer.may_reuse(0)) return;
    write(0, 4);
    writer.add(value(kOtherKey, 0, 4));
  }
  void grow_and_replace() {
    writer.grow();
    replace();
  }
};

enum class Look { kHold, kCopy };
enum class Dies { kNone, kReader, kWriter };

// `always`: the key has a value all the time.
template <class Orders>
Exploration run(void (Scene<Orders>::*change)(), Look look, bool always, Dies dies = Dies::kNone,
                int readers = 1) {
  return explore([=](Scenario& scenario) {
    auto& scene = scenario.make<Scene<Orders>>();
    const auto write = [&scene, change] { (scene.*change)(); };
    const auto read = [&scene, look, always] {
      const bool found = look == Look::kHold ? scene.hold() : scene.copy();
      if (always) Scenario::check(found, "a key that is there all the time is found");
    };
    if (dies == Dies::kWriter) {
      scenario.mortal_thread("writer", write);
    } else {
      scenario.thread("writer", write);
    }
    if (dies == Dies::kReader) {
      scenario.mortal_thread("reader", read);
    } else {
      for (int i = 0; i < readers; ++i) scenario.thread("reader", read);
    }
  });
}

void expect_right(const Exploration& done) {
  EXPECT_EQ(done.failure, "");
  EXPECT_EQ(done.cut, 0u);
  EXPECT(done.executions > 1);
}

TEST(a_value_is_held_or_copied_whole_while_another_takes_its_place) {
  for (const Look look : {Look::kHold, Look::kCopy}) {
    expect_right(run<Stated>(&Scene<Stated>::replace, look, /*always=*/true));
    expect_right(run<Stated>(&Scene<Stated>::replace_twice, look, /*always=*/true));
    expect_right(run<Stated>(&Scene<Stated>::replace, look, /*always=*/true, Dies::kNone, 2));
  }
}

TEST(pages_and_entries_that_another_key_gets_are_not_taken_for_the_first_ones) {
  for (const Look look : {Look::kHold, Look::kCopy}) {
    expect_right(run<Stated>(&Scene<Stated>::remove_and_add, look, /*always=*/false));
  }
}

TEST(a_key_is_found_while_the_table_is_replaced) {
  for (const Look look : {Look::kHold, Look::kCopy}) {
    expect_right(run<Stated>(&Scene<Stated>::grow_and_replace, look, /*always=*/true));
  }
}

TEST(who_dies_anywhere_leaves_no_wrong_value) {
  for (const Dies dies : {Dies::kReader, Dies::kWriter}) {
    for (const Look look : {Look::kHold, Look::kCopy}) {
      expect_right(run<Stated>(&Scene<Stated>::replace, look, /*always=*/true, dies));
      expect_right(run<Stated>(&Scene<Stated>::remove_and_add, look, /*always=*/false, dies));
    }
  }
}

template <class Orders>
bool is_found() {
  for (const Look look : {Look::kHold, Look::kCopy}) {
    if (!run<Orders>(&Scene<Orders>::replace, look, true).failure.empty()) return true;
    if (!run<Orders>(&Scene<Orders>::remove_and_add, look, false).failure.empty()) return true;
    if (!run<Orders>(&Scene<Orders>::grow_and_replace, look, true).failure.empty()) return true;
  }
  return false;
}

TEST(weaker_orders_are_found) {
  EXPECT(is_found<NoSeqCst>());
  EXPECT(is_found<NoAcquire>());
  EXPECT(is_found<NoRelease>());
  EXPECT(is_found<NoFences>());
}

}  // namespace
}  // namespace pgalloc::cache_protocol_test
