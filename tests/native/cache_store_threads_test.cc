// What one cache holds while several threads use it, the guard discards, discards are held, and the process forks.

#include <array>
#include <atomic>
#include <cstring>
#include <deque>
#include <thread>

#include "cache/store.h"
#include "native/cache_rig.h"

namespace pgalloc::cache_store_threads_test {
namespace {

using cache::Store;
using native_tests::CacheRig;
using native_tests::kAllPolicies;
using native_tests::Random;

constexpr uint64_t kAll = UINT64_MAX;
constexpr uint64_t kKeys = 40;
constexpr int kUsers = 3;
constexpr int kSteps = 3000;

// Values are words that all say the same: the key, and which value of it that is.
uint64_t stamp_of(uint64_t key, uint64_t number) { return number * kKeys + key; }
bool is_whole(std::string_view bytes, uint64_t key) {
  if (bytes.empty() || bytes.size() % sizeof(uint64_t) != 0) return false;
  uint64_t first = 0;
  std::memcpy(&first, bytes.data(), sizeof first);
  if (first % kKeys != key) return false;
  for (size_t at = 0; at < bytes.size(); at += sizeof first) {
    if (std::memcmp(bytes.data() + at, &first, sizeof first) != 0) return false;
  }
  return true;
}

class Scene {
 public:
  explicit Scene(const cache::StoreOptions& options) : rig_(options) {}

  void run() {
    std::deque<std::thread> users;
    Random seeds(1);  // no thread makes one of its own: that changes `context`
    for (int i = 0; i < kUsers; ++i) {
      users.emplace_back([this, random = Random(seeds.below(1000))]() mutable { use(random); });
    }
    std::thread guard(
        [this, random = Random(1)]() mutable { until_done([&] { discard(random); }); });
    std::thread holder([this] { until_done([this] { hold_discards(); }); });
    std::thread forks([this] { until_done([this] { fork(); }); });
    for (std::thread& user : users) user.join();
    done_ = true;
    for (std::thread* thread : {&guard, &holder, &forks}) thread->join();
    for (const auto& [count, what] : {std::pair{&torn_, "torn"},
                                      {&changed_, "changed while it was held"},
                                      {&discarded_, "discarded while that was held"},
                                      {&broken_, "broken"},
                                      {&refused_, "refused"}}) {
      if (*count > 0) std::cerr << "  " << *count << " times " << what << "\n";
      EXPECT_EQ(*count, 0);
    }
    rig_.expect_in_order();
    rig_.store->clear();
    EXPECT_EQ(rig_.bytes_in_use(), 0u);
  }

 private:
  struct Held {
    uint64_t key = 0;
    Store::Value value;
    uint64_t stamp = 0;
  };

  template <class Act>
  void until_done(Act act) {
    do {
      act();
      std::this_thread::yield();
    } while (!done_);
  }

  // --- Who uses it -------------------------------------------------------------------------------

  void use(Random& random) {
    std::deque<Held> held;
    for (int step = 0; step < kSteps; ++step) {
      const uint64_t key = random.below(kKeys);
      const std::string name = "key " + std::to_string(key);
      switch (random.below(10)) {
        case 0:
          hold(held, key, rig_.store->take(name));
          break;
        case 1:
          (void)rig_.store->remove(name);
          break;
        case 2:
          look(random);
          break;
        case 3:
        case 4:
        case 5:
          put(random, key, name);
          break;
        default:
          hold(held, key, rig_.store->get(name));
      }
      while (held.size() > 3 || (!held.empty() && random.one_in(3))) let_go(held);
    }
    while (!held.empty()) let_go(held);
  }
  void put(Random& random, uint64_t key, const std::string& name) {
    constexpr std::array<uint64_t, 4> kWords{10, 125, 130, 1200};
    const uint64_t stamp = stamp_of(key, ++numbers_);
    std::string bytes;
    for (uint64_t i = kWords[random.below(kWords.size())]; i > 0; --i) {
      bytes.append(reinterpret_cast<const char*>(&stamp), sizeof stamp);
    }
    cache::Item item{.key = name, .only_if_none = random.one_in(4)};
    if (random.one_in(3)) item.tag = "tag";
    if (!rig_.put(item, bytes).ok()) ++refused_;
  }
  void hold(std::deque<Held>& held, uint64_t key, const std::optional<Store::Value>& value) {
    if (!value) return;
    const std::string_view bytes = bytes_of(*value);
    if (!is_whole(bytes, key)) ++torn_;
    held.push_back({key, *value});
    std::memcpy(&held.back().stamp, bytes.data(), sizeof(uint64_t));
  }
  void let_go(std::deque<Held>& held) {
    const Held first = held.front();
    held.pop_front();
    const std::string_view bytes = bytes_of(first.value);
    if (!is_whole(bytes, first.key) || std::memcmp(bytes.data(), &first.stamp, 8) != 0) ++changed_;
    rig_.store->let_go(first.value.hold);
  }
  std::string_view bytes_of(const Store::Value& value) {
    return {*rig_.file->map(value.pages) + (value.place - value.pages.start), value.length};
  }
  void look(Random& random) {
    switch (random.below(6)) {
      case 0:
        if (rig_.store->verify()) ++broken_;
        break;
      case 1:
        if (rig_.store->save().size() > rig_.store->keys().ends.size() + 1000) ++broken_;
        break;
      case 2:
        if (const auto next = rig_.store->take_next()) {
          if (!is_whole(bytes_of(next->second), std::stoull(next->first.substr(4)))) ++torn_;
          rig_.store->let_go(next->second.hold);
        }
        break;
      case 3:
        (void)rig_.store->remove_tagged("tag");
        break;
      case 4:
        (void)rig_.store->evict(page_size());
        break;
      default:
        if (random.one_in(10)) rig_.store->clear();
    }
  }

  // --- What else goes on -------------------------------------------------------------------------

  void discard(Random& random) {
    const uint64_t bytes = random.between(1, 20) * page_size();
    if (random.one_in(10)) {
      (void)rig_.file->discarder().sweep(bytes, /*waiting=*/true);
    } else {
      (void)rig_.file->discarder().discard(bytes, kAll);
    }
    if (rig_.file->verify()) ++broken_;
  }
  void hold_discards() {
    rig_.file->discarder().hold();
    const uint64_t before = rig_.store->stats().discards;
    for (int i = 0; i < 20; ++i) std::this_thread::yield();
    if (rig_.store->stats().discards != before) ++discarded_;
    rig_.file->discarder().resume();
    for (int i = 0; i < 100; ++i) std::this_thread::yield();
  }
  // As one does in the thread that forks: all that is held gets a lease.
  void fork() NO_THREAD_SAFETY_ANALYSIS {
    References::Counts leases;
    rig_.file->stop_keepers_for_fork();
    rig_.file->lock_for_fork();
    rig_.file->references().lease_pinned(&leases);
    rig_.file->references().undo_leases(leases, 0);
    rig_.file->unlock_after_fork();
    rig_.file->let_keepers_go_on();
    for (int i = 0; i < 100; ++i) std::this_thread::yield();
  }

  CacheRig rig_;
  std::atomic<bool> done_{false};
  std::atomic<uint64_t> numbers_{0};
  std::atomic<int> torn_{0};
  std::atomic<int> changed_{0};
  std::atomic<int> discarded_{0};
  std::atomic<int> broken_{0};
  std::atomic<int> refused_{0};
};

TEST(values_are_whole_and_stay_while_they_are_held) {
  for (const DiscardPolicy policy : kAllPolicies) {
    Scene({.policy = policy}).run();
    Scene({.policy = policy, .bytes_max = 256 * page_size(), .remembers_discarded = true}).run();
    Scene({.policy = policy, .bytes_max = 20 * page_size()}).run();
  }
}

TEST(stores_and_their_files_end_while_the_guard_asks_them) {
  for (int round = 0; round < 60; ++round) {
    const std::shared_ptr<MemoryFile> file = std::move(*MemoryFile::create({}, {}));
    std::atomic<bool> done{false};
    std::thread guard([&] {
      while (!done) (void)file->discarder().discard(page_size(), kAll);
    });
    std::thread forks([&] {
      while (!done) {
        file->stop_keepers_for_fork();
        file->let_keepers_go_on();
        std::this_thread::yield();
      }
    });
    for (int i = 0; i < 5; ++i) {
      CacheRig rig({}, file);
      for (int value = 0; value < 20; ++value) {
        EXPECT(rig.put(std::to_string(value), std::string(500, 'x')) || file->closed());
        EXPECT(rig.put_pages_of(std::to_string(value), 1) || file->closed());
      }
      const auto held = rig.store->get("3");
      if (round % 3 == 1 && i == 3) EXPECT(file->close().ok());
      if (round % 3 == 2) rig.store->close();
      if (held) rig.store->let_go(held->hold);
    }
    done = true;
    guard.join();
    forks.join();
    EXPECT_EQ(file->verify(), std::nullopt);
  }
}

}  // namespace
}  // namespace pgalloc::cache_store_threads_test
