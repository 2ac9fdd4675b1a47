// What one cache holds: against a reference, and in which order its values go.

#include "cache/store.h"

#include <algorithm>
#include <map>
#include <thread>

#include "native/cache_rig.h"
#include "native/memory.h"
#include "native/support.h"

namespace pgalloc::cache_store_test {
namespace {

using cache::Item;
using cache::Store;
using cache::StoreOptions;
using native_tests::CacheRig;
using native_tests::context;
using native_tests::kAllPolicies;
using native_tests::pages;
using native_tests::Random;

constexpr uint64_t kAll = UINT64_MAX;

// --- Against a reference -------------------------------------------------------------------------

class Model {
 public:
  Model(uint64_t seed, const StoreOptions& options, bool expires, uint64_t pages_max)
      : random_(seed), options_(options), expires_(expires), pages_max_(pages_max), rig_(options) {}

  void run(int steps) {
    const std::string its_name = context;
    for (int step = 0; step < steps; ++step) {
      context = its_name + " step " + std::to_string(step);
      take_step();
      check();
      if (native_tests::failures > 0) return;
    }
    check_copy();
    while (!held_.empty()) let_go();
    rig_.expect_in_order();
    rig_.store->clear();
    EXPECT_EQ(rig_.bytes_in_use(), 0u);
    context = its_name;
  }

 private:
  struct Entry {
    std::string bytes;
    std::optional<std::string> tag;
    uint64_t expires_ns = 0;
    bool operator==(const Entry&) const = default;
  };
  struct Held {
    Store::Value value;
    std::string bytes;
  };

  bool limited() const { return options_.bytes_max.has_value(); }
  uint64_t now_ns() { return static_cast<uint64_t>(rig_.file->clock().now().count()); }
  std::string random_key() { return "key " + std::to_string(random_.below(60)); }
  std::string random_tag() { return std::string(random_.below(200), 't'); }
  uint64_t random_length() {
    switch (random_.below(4)) {
      case 0:
        return random_.below(600);
      case 1:
        return random_.below(pages_max_ * page_size() + 1);
      default:
        return 1000 + random_.below(50);  // of one slot size
    }
  }

  void take_step() {
    switch (random_.below(24)) {
      case 0:
        return take();
      case 1:
        return take_next();
      case 2:
      case 3:
        return remove();
      case 4:
        return remove_tagged();
      case 5:
        return random_.one_in(2) ? evict() : void();
      case 6:
        return random_.one_in(8) ? clear() : void();
      case 7:
        return random_.one_in(2) ? discard() : void();
      case 8:
        if (expires_) rig_.file->clock().advance(std::chrono::nanoseconds(random_.below(200)));
        return;
      case 9:
      case 10:
      case 11:
      case 12:
        return get();
      case 13:
      case 14:
      case 15:
        return let_go();
      default:
        return put();
    }
  }

  void put() {
    const std::string key = random_key();
    Entry entry;
    const uint64_t length = random_length();
    for (uint64_t i = 0; i < length; ++i) {
      entry.bytes.push_back(static_cast<char>(length + i * ++stamp_));
    }
    if (random_.one_in(3)) entry.tag = random_tag();
    if (expires_ && random_.one_in(3)) entry.expires_ns = now_ns() + random_.between(1, 1000);
    Item item{.key = key, .expires_ns = entry.expires_ns, .only_if_none = random_.one_in(5)};
    if (entry.tag) item.tag = *entry.tag;
    if (limited() && rig_.store->size_of(length, item) > *options_.bytes_max) return;
    const bool was_there = rig_.store->contains(key);
    EXPECT_EQ(was_there, reference_.contains(key));
    EXPECT(rig_.put(item, entry.bytes).ok());
    // What had to make way may have been the key's.
    if (!item.only_if_none || !was_there) reference_[key] = entry;
    if (limited()) forget_evicted();
    EXPECT(reference_.contains(key));
  }
  void get() {
    const std::string key = random_key();
    const auto found = reference_.find(key);
    const auto value = rig_.store->get(key);
    EXPECT_EQ(value.has_value(), found != reference_.end());
    if (value && found != reference_.end()) hold(*value, found->second);
  }
  void hold(const Store::Value& value, const Entry& entry) {
    EXPECT_EQ(rig_.bytes_of(value), entry.bytes);
    held_.push_back({value, entry.bytes});
  }
  void take() {
    const std::string key = random_key();
    const auto found = reference_.find(key);
    const auto value = rig_.store->take(key);
    EXPECT_EQ(value.has_value(), found != reference_.end());
    if (!value || found == reference_.end()) return;
    hold(*value, found->second);
    reference_.erase(found);
  }
  void take_next() {
    auto next = rig_.store->take_next();
    EXPECT_EQ(next.has_value(), !reference_.empty());
    if (!next) return;
    const auto found = reference_.find(next->first);
    if (!EXPECT(found != reference_.end())) return;
    hold(next->second, found->second);
    reference_.erase(found);
  }
  void let_go() {
    if (held_.empty()) return;
    const uint64_t place = random_.below(held_.size());
    rig_.store->let_go(held_[place].value.hold);
    held_.erase(held_.begin() + static_cast<ptrdiff_t>(place));
  }
  void remove() {
    const std::string key = random_key();
    EXPECT_EQ(rig_.store->remove(key), reference_.erase(key) == 1);
  }
  void remove_tagged() {
    const std::string tag = random_tag();
    const auto has_it = [&](const auto& each) { return each.second.tag == tag; };
    EXPECT_EQ(rig_.store->remove_tagged(tag), std::erase_if(reference_, has_it));
  }
  void clear() {
    rig_.store->clear();
    reference_.clear();
    EXPECT_EQ(rig_.store->size(), 0u);
  }
  void evict() {
    const uint64_t before = rig_.store->size();
    const uint64_t wanted = random_.below(4 * page_size());
    const uint64_t given_up = rig_.store->evict(wanted);
    EXPECT_EQ(rig_.store->size(), before - given_up);
    EXPECT(given_up >= wanted || rig_.store->count() == 0);
    forget_evicted();
  }
  void discard() {
    const uint64_t before = rig_.store->stats().page_bytes;
    const Discarded discarded =
        rig_.file->discarder().discard(random_.between(1, 10) * page_size(), kAll);
    EXPECT(discarded.given_back <= discarded.bytes);
    EXPECT_EQ(rig_.store->stats().page_bytes, before - discarded.bytes);
    if (options_.remembers_discarded) {
      while (const auto key = rig_.store->take_discarded()) EXPECT_EQ(reference_.erase(*key), 1u);
    }
    forget_evicted();
  }
  void forget_evicted() {
    const std::vector<std::string> keys = rig_.keys();
    std::erase_if(reference_, [&](const auto& each) {
      return !std::binary_search(keys.begin(), keys.end(), each.first);
    });
  }
  void forget_expired() {
    const uint64_t now = now_ns();
    std::erase_if(reference_, [&](const auto& each) {
      return each.second.expires_ns != 0 && each.second.expires_ns <= now;
    });
  }

  std::map<std::string, Entry> saved() {
    std::map<std::string, Entry> all;
    for (const Store::SavedHolder& holder : rig_.store->save()) {
      char* const start = *rig_.file->map(holder.pages);
      for (const Store::SavedValue& value : holder.values) {
        EXPECT(value.offset + value.length <= holder.pages.length());
        all[value.key] = {std::string(start + value.offset, value.length), value.tag,
                          value.expires_ns};
      }
    }
    return all;
  }

  void check() {
    forget_expired();
    EXPECT_EQ(rig_.store->verify(), std::nullopt);
    EXPECT_EQ(rig_.file->verify(), std::nullopt);
    std::vector<std::string> keys;
    for (const auto& [key, entry] : reference_) keys.push_back(key);
    EXPECT_EQ(rig_.keys(), keys);
    const cache::StoreStats stats = rig_.store->stats();
    EXPECT_EQ(stats.entries, reference_.size());
    EXPECT_EQ(rig_.store->count(), reference_.size());
    EXPECT_EQ(rig_.store->size(), stats.size);
    if (limited()) EXPECT(stats.size <= *options_.bytes_max);
    EXPECT(saved() == reference_);
    for (const Held& held : held_) EXPECT_EQ(rig_.bytes_of(held.value), held.bytes);
    // Pages are the store's, or those of values that are held.
    EXPECT(rig_.bytes_in_use() >= stats.page_bytes);
    if (held_.empty()) EXPECT_EQ(rig_.bytes_in_use(), stats.page_bytes);
  }

  // As an image would bring it, in another file.
  void check_copy() {
    CacheRig copy(options_);
    std::vector<image::Usage> usage;
    std::vector<Store::SavedHolder> holders = rig_.store->save();
    std::sort(holders.begin(), holders.end(),
              [](const auto& a, const auto& b) { return a.pages.start < b.pages.start; });
    for (const Store::SavedHolder& holder : holders) {
      usage.push_back({.range = holder.pages, .refs = 1, .kind = MemoryKind::kAnonymous});
    }
    EXPECT(copy.file->restore(rig_.file->total_size(), usage).ok());
    for (const Store::SavedHolder& holder : holders) {
      EXPECT(
          copy.file->write(holder.pages.start, *rig_.file->map(holder.pages), holder.pages.length())
              .ok());
      EXPECT(copy.store->restore(holder).ok());
      EXPECT_EQ(copy.store->verify(), std::nullopt);
      EXPECT(!copy.store->restore(holder).ok());  // they are the store's, or gone
      EXPECT_EQ(copy.store->verify(), std::nullopt);
    }
    copy.expect_in_order();
    for (const auto& [key, entry] : reference_) {
      if (const auto bytes = copy.get(key)) {
        EXPECT_EQ(*bytes, entry.bytes);
      } else {
        EXPECT(limited());
      }
    }
    // Its slabs can be used further.
    for (int i = 0; i < 100; ++i) {
      EXPECT(copy.put("new " + std::to_string(i), std::string(1000, 'n')));
      EXPECT_EQ(copy.store->verify(), std::nullopt);
    }
    for (const auto& [key, entry] : reference_) {
      if (const auto bytes = copy.get(key)) EXPECT_EQ(*bytes, entry.bytes);
    }
  }

  Random random_;
  const StoreOptions options_;
  const bool expires_;
  const uint64_t pages_max_;  // of a value
  CacheRig rig_;
  std::map<std::string, Entry> reference_;
  std::vector<Held> held_;
  uint64_t stamp_ = 0;
};

void run_models(StoreOptions options, bool expires, uint64_t pages_max = 2) {
  for (const DiscardPolicy policy : kAllPolicies) {
    options.policy = policy;
    for (uint64_t seed = 0; seed < 6; ++seed) {
      Model model(seed, options, expires, pages_max);
      context = "policy " + std::to_string(static_cast<int>(policy)) + " " + context;
      model.run(500);
      if (native_tests::failures > 0) return;
    }
  }
}

TEST(random_steps_without_a_limit) { run_models({}, /*expires=*/false); }
TEST(random_steps_with_times) { run_models({.remembers_discarded = true}, /*expires=*/true); }
TEST(random_steps_with_a_limit_that_is_met_often) {
  run_models({.bytes_max = 256 * page_size()}, /*expires=*/true, 40);
}
TEST(random_steps_in_little_room) { run_models({.bytes_max = 8 * page_size()}, /*expires=*/true); }
TEST(random_steps_where_only_the_smallest_share_pages) {
  run_models({.bytes_max = 64 * page_size()}, /*expires=*/false, 20);
}

// --- In which order values go --------------------------------------------------------------------

// Six pages: values of one page each, by one letter.
struct Few : CacheRig {
  explicit Few(DiscardPolicy policy) : CacheRig({.policy = policy, .bytes_max = 6 * page_size()}) {}
  void add(std::string_view keys) {
    for (const char key : keys) EXPECT(put_pages_of({&key, 1}, 1));
  }
  void read(std::string_view keys) {
    for (const char key : keys) EXPECT_EQ(get({&key, 1}), std::string(page_size(), key));
  }
  std::string all() {
    std::string all;
    for (const std::string& key : keys()) all += key;
    return all;
  }
  // In the order in which they go.
  std::string evict_all() {
    std::string order;
    for (std::string before = all(); !before.empty(); before = all()) {
      EXPECT_EQ(store->evict(1), page_size());
      const std::string after = all();
      std::set_difference(before.begin(), before.end(), after.begin(), after.end(),
                          std::back_inserter(order));
    }
    return order;
  }
  std::string take_all() {
    std::string order;
    while (const auto next = store->take_next()) {
      order += next->first;
      store->let_go(next->second.hold);
    }
    return order;
  }
  std::string discard_all() {
    std::string order;
    for (std::string before = all(); !before.empty(); before = all()) {
      EXPECT_EQ(store->discard(1, kAll).bytes, page_size());
      const std::string after = all();
      std::set_difference(before.begin(), before.end(), after.begin(), after.end(),
                          std::back_inserter(order));
    }
    return order;
  }
};

// Each way to go has the same order.
void expect_order(DiscardPolicy policy, void (*prepare)(Few&), std::string_view expected) {
  for (std::string (Few::* const way)() : {&Few::evict_all, &Few::take_all, &Few::discard_all}) {
    Few few(policy);
    prepare(few);
    EXPECT_EQ(few.store->verify(), std::nullopt);
    EXPECT_EQ((few.*way)(), expected);
    few.expect_in_order();
  }
}

TEST(lru_evicts_what_was_read_or_set_longest_ago) {
  Few few(DiscardPolicy::kLru);
  few.add("abcdef");
  few.read("a");
  few.add("b");  // anew: it is as if it were read
  few.add("gh");
  EXPECT_EQ(few.all(), "abefgh");
  EXPECT_EQ(few.store->stats().evictions, 2u);
  expect_order(
      DiscardPolicy::kLru,
      [](Few& its) {
        its.add("abcdef");
        its.read("dba");
      },
      "cefdba");
}

TEST(sieve_passes_over_what_was_read_once) {
  Few few(DiscardPolicy::kSieve);
  few.add("abcdef");
  few.read("abd");
  few.add("g");  // the hand goes over a and b, and takes c
  EXPECT_EQ(few.all(), "abdefg");
  few.read("a");
  few.add("h");  // over d, and takes e
  EXPECT_EQ(few.all(), "abdfgh");
  few.add("ij");  // f and g
  EXPECT_EQ(few.all(), "abdhij");
  expect_order(
      DiscardPolicy::kSieve,
      [](Few& its) {
        its.add("abcdef");
        its.read("acc");
      },
      "bdefac");
}

TEST(s3_fifo_keeps_what_was_read_twice_and_what_came_back) {
  Few few(DiscardPolicy::kS3Fifo);
  few.add("abcdef");
  few.read("aabcc");
  few.add("g");  // a goes on to the main queue; b was read once only
  EXPECT_EQ(few.all(), "acdefg");
  few.add("b");  // c goes on, d goes; b was here, and goes to the main queue
  EXPECT_EQ(few.all(), "abcefg");
  few.add("hij");
  EXPECT_EQ(few.all(), "abchij");
  expect_order(
      DiscardPolicy::kS3Fifo,
      [](Few& its) {
        its.add("abcdef");
        its.read("aacce");
      },
      "bdefac");
}

TEST(what_is_held_goes_last_and_what_is_discarded_is_not_held) {
  for (const DiscardPolicy policy : kAllPolicies) {
    Few few(policy);
    few.add("abc");
    const auto a = few.store->get("a");
    EXPECT_EQ(few.store->discard(kAll, kAll).bytes, 2 * page_size());
    EXPECT_EQ(few.store->discard(kAll, kAll).bytes, 0u);
    EXPECT_EQ(few.all(), "a");
    few.add("bc");
    EXPECT_EQ(few.store->evict(2 * page_size()), 2 * page_size());
    EXPECT_EQ(few.all(), "a");
    EXPECT_EQ(few.store->evict(1), page_size());  // there is no other
    EXPECT_EQ(few.all(), "");
    EXPECT_EQ(few.bytes_of(*a), std::string(page_size(), 'a'));
    EXPECT_EQ(few.bytes_in_use(), page_size());
    few.store->let_go(a->hold);
    few.expect_in_order();
  }
}

TEST(a_read_of_a_slab_keeps_all_its_values) {
  CacheRig rig({.policy = DiscardPolicy::kLru, .bytes_max = 64 * page_size()});
  const uint64_t slots = page_size() / cache::slot_bytes_for(400);
  for (uint64_t i = 0; i < 3 * slots; ++i) {
    EXPECT(rig.put(std::string(1, static_cast<char>('a' + i)), std::string(400, 'x')));
  }
  EXPECT(rig.get("a").has_value());
  EXPECT(rig.store->evict(1) >= page_size());  // and what the index takes for its values
  EXPECT_EQ(rig.store->count(), 2 * slots);
  EXPECT(rig.has("a") && !rig.has(std::string(1, static_cast<char>('a' + slots))));
  rig.expect_in_order();
}

}  // namespace
}  // namespace pgalloc::cache_store_test
