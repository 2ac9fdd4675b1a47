// The policies, each against a reference of a few lines made after its paper.

#include "pages/discard_queue.h"

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>

#include "native/memory.h"
#include "native/support.h"

namespace pgalloc::discard_queue_test {
namespace {

using native_tests::context;
using native_tests::pages;
using native_tests::Random;

// --- References ----------------------------------------------------------------------------------

struct Item {
  uint64_t id = 0;
  uint64_t bytes = 0;
  int visits = 0;
  bool held = false;
};

using Queue = std::deque<Item>;  // the oldest in front

bool is_in(const Queue& queue, uint64_t id) {
  return std::any_of(queue.begin(), queue.end(), [&](const Item& item) { return item.id == id; });
}
size_t place_of(const Queue& queue, uint64_t id) {
  return std::find_if(queue.begin(), queue.end(), [&](const Item& i) { return i.id == id; }) -
         queue.begin();
}

class Reference {
 public:
  virtual ~Reference() = default;
  virtual bool has(uint64_t id) const = 0;
  virtual bool any_free() const = 0;
  virtual void insert(uint64_t id, uint64_t bytes) = 0;
  virtual void visit(uint64_t id) = 0;  // it was pinned
  virtual void let_go(uint64_t id) = 0;
  virtual void remove(uint64_t id) = 0;
  virtual Item evict() = 0;  // REQUIRES: any_free()
  virtual void put_last(const Item& item) = 0;

 protected:
  static bool any_free_in(const Queue& queue) {
    return std::any_of(queue.begin(), queue.end(), [](const Item& item) { return !item.held; });
  }
};

// Least recently unpinned.
class Lru : public Reference {
 public:
  bool has(uint64_t id) const override { return is_in(queue_, id); }
  bool any_free() const override { return !queue_.empty(); }
  void insert(uint64_t id, uint64_t bytes) override { queue_.push_back({id, bytes}); }
  void visit(uint64_t id) override { remove(id); }
  void let_go(uint64_t) override {}
  void remove(uint64_t id) override {
    std::erase_if(queue_, [&](const Item& item) { return item.id == id; });
  }
  Item evict() override {
    const Item item = queue_.front();
    queue_.pop_front();
    return item;
  }
  void put_last(const Item& item) override { queue_.push_back(item); }

 private:
  Queue queue_;
};

// Algorithm 1 of the SIEVE paper, where what is held now counts as visited.
class Sieve : public Reference {
 public:
  bool has(uint64_t id) const override { return is_in(queue_, id); }
  bool any_free() const override { return any_free_in(queue_); }
  void insert(uint64_t id, uint64_t bytes) override { queue_.push_back({id, bytes}); }
  void visit(uint64_t id) override {
    Item& item = queue_[place_of(queue_, id)];
    item.visits = 1;
    item.held = true;
  }
  void let_go(uint64_t id) override { queue_[place_of(queue_, id)].held = false; }
  void remove(uint64_t id) override { erase(place_of(queue_, id)); }
  Item evict() override {
    while (true) {
      if (hand_ >= queue_.size()) hand_ = 0;
      Item& item = queue_[hand_];
      if (item.visits == 0 && !item.held) break;
      item.visits = 0;
      ++hand_;
      if (hand_ == queue_.size()) hand_ = 0;
    }
    const Item item = queue_[hand_];
    erase(hand_);
    return item;
  }
  void put_last(const Item& item) override { queue_.push_back(item); }

 private:
  void erase(size_t place) {
    const bool last = hand_ == place && place + 1 == queue_.size();
    queue_.erase(queue_.begin() + place);
    if (last) hand_ = 0;  // from the newest to the oldest
    if (place < hand_) --hand_;
  }
  Queue queue_;
  size_t hand_ = 0;
};

// Algorithm 1 of the S3-FIFO paper, by bytes, where what is held now is passed over, and the small queue
// has its turn, too, if all of main are held.
class S3Fifo : public Reference {
 public:
  explicit S3Fifo(const std::function<size_t()>& ghosts_max) : ghosts_max_(ghosts_max) {}
  bool has(uint64_t id) const override { return is_in(small_, id) || is_in(main_, id); }
  bool any_free() const override { return any_free_in(small_) || any_free_in(main_); }
  void insert(uint64_t id, uint64_t bytes) override {
    // Only one of the last so many to leave the small queue returns; either way it is a ghost no more.
    const auto ghost = std::find(ghosts_.begin(), ghosts_.end(), id);
    const bool returns =
        ghost != ghosts_.end() && ghosts_.end() - ghost <= static_cast<int64_t>(ghosts_max_());
    if (ghost != ghosts_.end()) *ghost = kNone;
    (returns ? main_ : small_).push_back({id, bytes});
  }
  void visit(uint64_t id) override {
    Item& item = find(id);
    item.visits = std::min(item.visits + 1, 3);
    item.held = true;
  }
  void let_go(uint64_t id) override { find(id).held = false; }
  void remove(uint64_t id) override {
    for (Queue* queue : {&small_, &main_}) {
      std::erase_if(*queue, [&](const Item& item) { return item.id == id; });
    }
  }
  Item evict() override {
    while (true) {
      const uint64_t tenth = (bytes(small_) + bytes(main_)) / 10;
      if (!small_.empty() && (!any_free_in(main_) || bytes(small_) >= tenth)) {
        Item item = take_front(small_);
        if (item.visits <= 1 && !item.held) {
          ghosts_.push_back(item.id);
          return item;
        }
        item.visits = 0;
        main_.push_back(item);
      } else {
        Item item = take_front(main_);
        if (item.visits == 0 && !item.held) return item;
        item.visits = std::max(item.visits - 1, 0);
        main_.push_back(item);
      }
    }
  }
  void put_last(const Item& item) override { main_.push_back(item); }

 private:
  static constexpr uint64_t kNone = UINT64_MAX;
  static uint64_t bytes(const Queue& queue) {
    uint64_t sum = 0;
    for (const Item& item : queue) sum += item.bytes;
    return sum;
  }
  static Item take_front(Queue& queue) {
    const Item item = queue.front();
    queue.pop_front();
    return item;
  }
  Item& find(uint64_t id) {
    return is_in(small_, id) ? small_[place_of(small_, id)] : main_[place_of(main_, id)];
  }
  Queue small_;
  Queue main_;
  std::vector<uint64_t> ghosts_;  // all that ever left
  std::function<size_t()> ghosts_max_;
};

// --- The same steps in both ----------------------------------------------------------------------

class Both {
 public:
  Both(DiscardPolicy policy, uint64_t seed) : random_(seed), queue_(policy) {
    entries_.resize(kEntries);
    for (uint64_t id = 0; id < kEntries; ++id) {
      entries_[id].id = entries_[id].hash = id;
      entries_[id].range = pages(0, random_.between(1, 20));
    }
    switch (policy) {
      case DiscardPolicy::kLru:
        reference_ = std::make_unique<Lru>();
        break;
      case DiscardPolicy::kSieve:
        reference_ = std::make_unique<Sieve>();
        break;
      case DiscardPolicy::kS3Fifo:
        reference_ = std::make_unique<S3Fifo>([this] { return window_; });
        break;
    }
  }
  ~Both() { queue_.clear(); }

  void step() {
    const uint64_t id = random_.below(kEntries);
    Discardable& entry = entries_[id];
    const bool waits = reference_->has(id);
    EXPECT_EQ(entry.list != nullptr, waits);
    switch (random_.below(10)) {
      case 0:
        if (waits) reference_->remove(id);
        queue_.remove(entry);
        break;
      case 1:
      case 2:
      case 3:
        evict();
        break;
      case 4:
      case 5:
        if (waits) reference_->visit(id);
        queue_.pinned(entry);
        break;
      default:
        unpin(entry);
    }
  }
  void drain() {
    for (uint64_t id = 0; id < kEntries; ++id) {
      if (reference_->has(id) && entries_[id].held) unpin(entries_[id]);
    }
    while (reference_->any_free()) evict();
    EXPECT(queue_.take_victim() == nullptr);
    EXPECT_EQ(queue_.size(), 0u);
  }

 private:
  static constexpr uint64_t kEntries = 24;

  void unpin(Discardable& entry) {
    window_ = queue_.size() + 1;
    if (reference_->has(entry.id)) {
      reference_->let_go(entry.id);
    } else {
      reference_->insert(entry.id, entry.range.length());
    }
    queue_.unpinned(entry);
  }
  void evict() {
    if (!reference_->any_free()) return;  // tests of their own
    const Item expected = reference_->evict();
    Discardable* const victim = queue_.take_victim();
    if (!EXPECT(victim != nullptr) || !EXPECT_EQ(victim->id, expected.id)) std::abort();
    EXPECT(victim->list == nullptr && !victim->held);
    if (random_.one_in(4)) {
      reference_->put_last(expected);
      queue_.refuse(*victim);
    }
  }

  Random random_;
  DiscardQueue queue_;
  std::vector<Discardable> entries_;
  std::unique_ptr<Reference> reference_;
  size_t window_ = 0;
};

void compare(DiscardPolicy policy) {
  for (uint64_t seed = 0; seed < 60 && native_tests::failures == 0; ++seed) {
    Both both(policy, seed);
    for (int i = 0; i < 400 && native_tests::failures == 0; ++i) both.step();
    if (native_tests::failures == 0) both.drain();
  }
}

TEST(lru_is_as_its_name_says) { compare(DiscardPolicy::kLru); }
TEST(sieve_is_as_its_paper_says) { compare(DiscardPolicy::kSieve); }
TEST(s3_fifo_is_as_its_paper_says) { compare(DiscardPolicy::kS3Fifo); }

// --- By name -------------------------------------------------------------------------------------

// A queue with entries 0, 1, 2 ... of a page each; the first `waiting` were unpinned in this order.
class Few {
 public:
  explicit Few(DiscardPolicy policy, uint64_t waiting = 0) : queue(policy) {
    entries.resize(40);
    for (uint64_t id = 0; id < entries.size(); ++id) {
      entries[id].id = entries[id].hash = id;
      entries[id].range = pages(id, id + 1);
    }
    for (uint64_t id = 0; id < waiting; ++id) unpin(id);
  }
  ~Few() { queue.clear(); }
  void unpin(uint64_t id) { queue.unpinned(entries[id]); }
  void pin(uint64_t id) { queue.pinned(entries[id]); }
  void visit(uint64_t id) { pin(id), unpin(id); }
  std::vector<uint64_t> victims(size_t count) {
    std::vector<uint64_t> ids;
    while (ids.size() < count) {
      Discardable* const victim = queue.take_victim();
      if (victim == nullptr) break;
      ids.push_back(victim->id);
    }
    return ids;
  }

  DiscardQueue queue;
  std::vector<Discardable> entries;
};

using Ids = std::vector<uint64_t>;
// Those that leave an entry in its place while it is pinned.
constexpr DiscardPolicy kInPlace[] = {DiscardPolicy::kSieve, DiscardPolicy::kS3Fifo};

std::vector<DiscardPolicy> all_policies() {
  std::vector<DiscardPolicy> all;
  while (all.size() < kDiscardPolicyNames.size())
    all.push_back(static_cast<DiscardPolicy>(all.size()));
  return all;
}

TEST(no_entry_goes_from_an_empty_queue) {
  for (const DiscardPolicy policy : all_policies()) {
    Few few(policy);
    EXPECT(few.queue.take_victim() == nullptr);
    EXPECT_EQ(few.queue.front_order(), std::nullopt);
    few.unpin(0);
    EXPECT_EQ(few.queue.front_order(), few.entries[0].order);
    EXPECT_EQ(few.victims(2), Ids{0});
  }
}

TEST(held_entries_stay_and_the_queue_knows_that_none_can_go) {
  for (const DiscardPolicy policy : kInPlace) {
    Few few(policy, 3);
    for (uint64_t id : {0, 1, 2}) few.pin(id);
    EXPECT_EQ(few.queue.size(), 3u);
    EXPECT(few.queue.take_victim() == nullptr);
    EXPECT_EQ(few.queue.front_order(), std::nullopt);
    few.unpin(1);
    EXPECT(few.queue.front_order().has_value());
    EXPECT_EQ(few.victims(3), Ids{1});
  }
}

TEST(oldest_goes_by_the_last_unpin) {
  Few few(DiscardPolicy::kLru, 4);
  few.pin(0);
  EXPECT_EQ(few.queue.size(), 3u);
  few.unpin(0);
  few.unpin(1);  // again, without having been pinned: keeps its place
  EXPECT_EQ(few.victims(4), (Ids{1, 2, 3, 0}));
}

TEST(sieve_passes_over_a_visited_entry_and_clears_its_visits) {
  Few few(DiscardPolicy::kSieve, 4);
  few.visit(0);
  few.visit(0);
  few.visit(2);
  EXPECT_EQ(few.victims(1), Ids{1});  // 0 was passed, the hand is at 2
  EXPECT_EQ(few.victims(1), Ids{3});
  EXPECT_EQ(few.victims(2), (Ids{0, 2}));  // once round: their visits are gone
}

TEST(sieve_keeps_survivors_where_they_are) {
  Few few(DiscardPolicy::kSieve, 3);
  few.visit(0);
  EXPECT_EQ(few.victims(1), Ids{1});
  few.unpin(3);
  few.unpin(4);
  EXPECT_EQ(few.victims(4), (Ids{2, 3, 4, 0}));  // a FIFO with second chances would take 0 before 3
}

TEST(sieve_forgets_what_leaves_under_its_hand) {
  Few few(DiscardPolicy::kSieve, 4);
  few.visit(0);
  EXPECT_EQ(few.victims(1), Ids{1});
  few.queue.remove(few.entries[2]);
  EXPECT_EQ(few.victims(1), Ids{3});
  EXPECT_EQ(few.victims(2), Ids{0});
}

TEST(s3_fifo_saves_what_was_visited_twice_while_new) {
  Few few(DiscardPolicy::kS3Fifo, 4);
  few.visit(0);
  few.visit(1);
  few.visit(1);
  EXPECT_EQ(few.victims(4), (Ids{0, 2, 3, 1}));
}

TEST(s3_fifo_sends_who_comes_back_soon_to_main) {
  Few few(DiscardPolicy::kS3Fifo, 5);
  EXPECT_EQ(few.victims(1), Ids{0});
  few.unpin(0);
  few.unpin(5);
  EXPECT_EQ(few.victims(6), (Ids{1, 2, 3, 4, 5, 0}));  // main comes last
  // What left main is no ghost.
  few.unpin(0);
  few.unpin(6);
  EXPECT_EQ(few.victims(2), (Ids{0, 6}));
}

TEST(s3_fifo_forgets_ghosts_after_as_many_departures_as_there_are_entries) {
  Few few(DiscardPolicy::kS3Fifo, 2);
  EXPECT_EQ(few.victims(1), Ids{0});
  for (uint64_t id = 2; id < 8; ++id) {
    few.unpin(id);
    EXPECT_EQ(few.victims(1), Ids{id - 1});
  }
  few.unpin(0);
  few.unpin(8);
  EXPECT_EQ(few.victims(3), (Ids{7, 0, 8}));
}

TEST(s3_fifo_gives_main_entries_a_round_for_each_visit) {
  Few few(DiscardPolicy::kS3Fifo, 6);
  EXPECT_EQ(few.victims(3), (Ids{0, 1, 2}));
  for (uint64_t id : {2, 1, 0}) few.unpin(id);  // all in main: they left not long ago
  few.visit(0);
  few.visit(0);
  few.visit(1);
  EXPECT_EQ(few.victims(6), (Ids{3, 4, 5, 2, 1, 0}));
}

TEST(s3_fifo_takes_from_main_while_the_small_queue_is_below_a_tenth) {
  Few few(DiscardPolicy::kS3Fifo, 30);
  EXPECT_EQ(few.victims(30).size(), 30u);
  for (uint64_t id = 0; id < 30; ++id) few.unpin(id);
  few.unpin(30);  // 1 of 31
  EXPECT_EQ(few.victims(13).back(), 12u);
  EXPECT_EQ(few.victims(1), Ids{13});
  // 17 pages and one: less than a tenth; from 9 and one on it is the newcomer's turn.
  EXPECT_EQ(few.victims(17),
            (Ids{14, 15, 16, 17, 18, 19, 20, 30, 21, 22, 23, 24, 25, 26, 27, 28, 29}));
}

TEST(s3_fifo_takes_newcomers_while_all_of_main_are_held) {
  Few few(DiscardPolicy::kS3Fifo, 30);
  EXPECT_EQ(few.victims(30).size(), 30u);
  for (uint64_t id = 0; id < 30; ++id) few.visit(id), few.pin(id);
  few.unpin(30);  // less than a tenth
  EXPECT_EQ(few.victims(2), Ids{30});
}

TEST(refused_means_last) {
  for (const DiscardPolicy policy : all_policies()) {
    Few few(policy, 3);
    Discardable* const victim = few.queue.take_victim();
    EXPECT_EQ(victim->id, 0u);
    few.queue.refuse(*victim);
    EXPECT_EQ(few.victims(4), (Ids{1, 2, 0}));
  }
}

TEST(victims_are_those_of_the_policy_then_those_that_are_held) {
  for (const DiscardPolicy policy : kInPlace) {
    Few few(policy, 4);
    few.pin(0);
    for (const uint64_t expected : {1, 2, 3, 0}) {
      const Discardable* const victim = few.queue.take_victim_or_held();
      EXPECT(victim != nullptr && victim->list == nullptr);
      EXPECT_EQ(victim->id, expected);
    }
    EXPECT(few.queue.take_victim_or_held() == nullptr);
  }
}

TEST(without_memory_entries_wait_all_the_same) {
  for (const DiscardPolicy policy : all_policies()) {
    for (const uint64_t before : {0, 200}) {
      DiscardQueue queue(policy);
      std::deque<Discardable> all(before + 300);
      for (uint64_t i = 0; i < all.size(); ++i) {
        all[i].hash = i;
        native_tests::all_fail = i >= before;
        queue.unpinned(all[i]);
      }
      EXPECT_EQ(queue.size(), all.size());
      Discardable* const first = queue.take_victim();
      EXPECT(first == &all.front());
      queue.unpinned(*first);
      native_tests::all_fail = false;
      for (size_t i = 0; i < all.size(); ++i) EXPECT(queue.take_victim() != nullptr);
      EXPECT(queue.take_victim() == nullptr);
    }
  }
}

TEST(discarding_takes_no_memory) {
  for (const DiscardPolicy policy : all_policies()) {
    DiscardQueue queue(policy);
    for (const uint64_t entries : {1, 2, 3, 100, 5}) {
      std::deque<Discardable> all(entries);
      for (Discardable& entry : all) queue.unpinned(entry);
      native_tests::allocations_left = 0;
      while (queue.take_victim() != nullptr) {
      }
      EXPECT_EQ(std::exchange(native_tests::allocations_left, -1), 0);
    }
  }
}

}  // namespace
}  // namespace pgalloc::discard_queue_test
