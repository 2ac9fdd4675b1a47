// What one cache holds: against a reference, and in which order its values go.

#include "cache/store.h"

#include <algorithm>
#include <atomic>
#include <cstring>
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

// --- What must not happen ------------------------------------------------------------------------

constexpr uint64_t kTiny = 400;  // shares a page with nine others

std::string tiny(uint64_t number) {
  std::string bytes(kTiny, static_cast<char>('0' + number % 10));
  return bytes;
}
uint64_t tiny_slots() { return page_size() / cache::slot_bytes_for(kTiny); }

// Values with pages of their own, until no other page has room.
void fill_up(CacheRig& rig) {
  for (int i = 0; rig.store->size() + page_size() <= *rig.store->bytes_max(); ++i) {
    EXPECT(rig.put_pages_of("filler " + std::to_string(i), 1));
  }
  EXPECT_EQ(rig.store->stats().evictions, 0u);
}

// Its slab does not go with the old value: the new one is in it, too.
TEST(a_value_that_costs_more_when_it_is_set_again_in_its_slab_makes_way_for_that) {
  for (uint64_t tag_length = 36000; tag_length < 36000 + 2 * page_size(); tag_length += 256) {
    CacheRig rig({.policy = DiscardPolicy::kLru, .bytes_max = 64 * page_size()});
    for (uint64_t i = 0; i < 2 * tiny_slots(); ++i) {
      EXPECT(rig.put("key " + std::to_string(i), tiny(i)));
    }
    for (uint64_t i = 1; i < tiny_slots(); ++i) rig.store->remove("key " + std::to_string(i));
    fill_up(rig);
    EXPECT(rig.get("key 0").has_value());  // so that others make way
    const std::string tag(tag_length, 't');
    EXPECT(rig.put({.key = "key 0", .tag = tag}, tiny(5)).ok());
    EXPECT_EQ(rig.get("key 0"), tiny(5));
    if (!EXPECT_EQ(rig.store->verify(), std::nullopt)) return;
  }
}

TEST(a_slab_for_a_small_value_has_room_before_the_large_one_leaves) {
  CacheRig rig({.policy = DiscardPolicy::kLru, .bytes_max = 64 * page_size()});
  EXPECT(rig.put_pages_of("key", 4));
  fill_up(rig);
  EXPECT(rig.get("key").has_value());
  const Item item{.key = "key"};
  EXPECT(*rig.store->put_small(item, tiny(5)) == Store::Put::kWantsSlab);
  EXPECT_EQ(rig.get("key"), std::string(4 * page_size(), 'k'));
  EXPECT(rig.add_slab(item, kTiny).ok());
  EXPECT(*rig.store->put_small(item, tiny(5)) == Store::Put::kDone);
  EXPECT_EQ(rig.store->verify(), std::nullopt);
  EXPECT_EQ(rig.get("key"), tiny(5));
  rig.expect_in_order();
}

// Slabs with vacant slots that are being read are in the way, so it takes the slot of its old value.
TEST(a_small_value_that_is_set_again_is_never_missing) {
  for (const bool alone : {true, false}) {
    CacheRig rig({.bytes_max = 64 * page_size()});
    constexpr uint64_t kSlabs = 7;
    for (uint64_t i = 0; i < kSlabs * tiny_slots(); ++i) {
      EXPECT(rig.put("key " + std::to_string(i), tiny(i)));
    }
    const uint64_t last = (kSlabs - 2) * tiny_slots();  // the first of the last but one
    const std::string key = "key " + std::to_string(last);
    std::vector<Store::Value> held;
    for (uint64_t slab = 0; slab < kSlabs - 2; ++slab) {
      held.push_back(*rig.store->get("key " + std::to_string(slab * tiny_slots())));
      rig.store->remove("key " + std::to_string(slab * tiny_slots() + 1));
    }
    for (uint64_t i = 1; alone && i < tiny_slots(); ++i) {
      rig.store->remove("key " + std::to_string(last + i));
    }
    fill_up(rig);
    const auto done = rig.store->put_small({.key = key}, tiny(5));
    EXPECT_EQ(rig.get(key), *done == Store::Put::kDone ? tiny(5) : tiny(last));
    EXPECT_EQ(rig.store->verify(), std::nullopt);
    EXPECT(rig.put(key, tiny(6)));
    EXPECT_EQ(rig.get(key), tiny(6));
    for (const Store::Value& value : held) rig.store->let_go(value.hold);
    rig.expect_in_order();
  }
}

// All pages of a file, in one extent that comes when it is asked for.
class Late final : public ExtentSource {
 public:
  explicit Late(FileRange range) {
    head_ = {.range = range, .encoding = image::Encoding::kRaw, .stored_length = range.length()};
    for (size_t page = 0; page < range.length() / page_size(); ++page) head_.map.set(page);
    index_.push_back(image::index_entry(head_));
  }
  const std::vector<image::IndexEntry>& index() const override { return index_; }
  bool has_encoded_extents() const override { return false; }
  size_t first_extent_after(uint64_t) const override { return 0; }
  Result<image::ExtentHead> read_extent(size_t, Buffer& buffer) const override {
    ++read;
    std::memset(buffer.reserve(page_size() + head_.stored_length) + page_size(), 'x',
                head_.stored_length);
    return head_;
  }

  mutable std::atomic<int> read{0};

 private:
  image::ExtentHead head_;
  std::vector<image::IndexEntry> index_;
};

// That would be a wait under the store's lock, for threads that may need what the caller holds.
TEST(no_value_is_put_into_pages_that_are_still_in_an_image) {
  CacheRig rig;
  const FileRange slab = pages(0, 4);
  EXPECT(rig.file->restore(slab.length(), {{.range = slab}}).ok());
  const auto source = std::make_shared<Late>(slab);
  EXPECT(rig.file->loader().begin(source).ok());
  const uint32_t slot_bytes = cache::slot_bytes_for(1000);
  EXPECT(rig.store
             ->restore({.pages = slab,
                        .slot_bytes = slot_bytes,
                        .values = {{.offset = slot_bytes, .length = 900, .key = "old"}}})
             .ok());
  for (int i = 0; i < 40; ++i) {
    EXPECT(rig.put("new " + std::to_string(i), std::string(1000, 'n')));
  }
  EXPECT_EQ(source->read, 0);
  EXPECT_EQ(rig.get("old"), std::string(900, 'x'));
  EXPECT_EQ(source->read, 1);
  for (int i = 0; i < 40; ++i) {
    EXPECT_EQ(rig.get("new " + std::to_string(i)), std::string(1000, 'n'));
  }
  // Now it can be filled.
  const uint64_t before = rig.store->stats().page_bytes;
  const uint64_t vacant = 3 * (slab.length() / slot_bytes) - 41;
  for (uint64_t i = 0; i < vacant; ++i) {
    EXPECT(rig.put("last " + std::to_string(i), std::string(1000, 'l')));
  }
  EXPECT_EQ(rig.store->stats().page_bytes, before);
  EXPECT_EQ(rig.get("old"), std::string(900, 'x'));
  rig.expect_in_order();
}

// A forked child has a lease on the pages in the middle.
TEST(what_is_discarded_goes_at_once_but_for_pages_that_another_has) {
  CacheRig rig;
  for (const char* key : {"a", "b", "c"}) EXPECT(rig.put_pages_of(key, 1));
  const auto b = rig.store->get("b");
  const FileRange leased = b->pages;
  rig.store->let_go(b->hold);
  EXPECT(rig.file->references().lease_anew(leased).ok());
  const Discarded discarded = rig.store->discard(kAll, kAll);
  EXPECT_EQ(discarded.bytes, 3 * page_size());
  EXPECT_EQ(discarded.given_back, 2 * page_size());
  EXPECT_EQ(rig.bytes_of({.pages = leased, .place = leased.start, .length = 1}), "b");
  EXPECT(rig.file->references().drop_lease(leased).ok());
  rig.expect_in_order();
}

// A child that was forked while a value was held reads it for as long as it lives.
TEST(a_slot_is_not_used_again_while_another_process_has_the_pages) {
  CacheRig rig;
  for (uint64_t i = 0; i < 3 * tiny_slots(); ++i) {
    EXPECT(rig.put("key " + std::to_string(i), tiny(i)));
  }
  const auto held = rig.store->get("key 3");
  const FileRange leased = held->pages;
  rig.file->stop_keepers_for_fork();
  EXPECT(rig.file->references().lease_anew(leased).ok());
  rig.file->let_keepers_go_on();
  rig.store->let_go(held->hold);
  const std::string before(*rig.file->map(leased), leased.length());
  EXPECT(rig.store->remove("key 3"));
  for (uint64_t i = 0; i < tiny_slots(); ++i) {
    EXPECT(rig.put("new " + std::to_string(i), tiny(9)));
  }
  EXPECT_EQ(std::string(*rig.file->map(leased), leased.length()), before);
  EXPECT_EQ(rig.store->verify(), std::nullopt);
  EXPECT(rig.file->references().drop_lease(leased).ok());
  EXPECT(rig.put("last", tiny(9)));
  const auto last = rig.store->get("last");
  EXPECT_EQ(last->place, held->place);  // it can be used again now
  rig.store->let_go(last->hold);
  rig.expect_in_order();
}

// --- Its end, and that of its file ---------------------------------------------------------------

TEST(what_is_held_outlives_the_values_of_a_closed_store) {
  CacheRig rig;
  EXPECT(rig.put("small", tiny(3)));
  EXPECT(rig.put_pages_of("large", 3));
  const auto small = rig.store->get("small");
  const auto large = rig.store->get("large");
  rig.store->close();
  rig.store->close();
  EXPECT_EQ(rig.store->check_usable().code(), ErrorCode::kClosed);
  EXPECT(!rig.store->get("small") && !rig.store->take("large") && !rig.store->take_next());
  EXPECT(!rig.store->contains("small") && !rig.store->remove("large"));
  EXPECT_EQ(rig.put({.key = "new"}, tiny(1)).code(), ErrorCode::kClosed);
  EXPECT_EQ(rig.put({.key = "new"}, std::string(9999, 'n')).code(), ErrorCode::kClosed);
  EXPECT(rig.keys().empty() && rig.store->save().empty());
  EXPECT_EQ(rig.store->evict(kAll), 0u);
  EXPECT_EQ(rig.store->discard(kAll, kAll).bytes, 0u);
  EXPECT_EQ(rig.bytes_of(*small), tiny(3));
  EXPECT_EQ(rig.bytes_of(*large), std::string(3 * page_size(), 'l'));
  EXPECT_EQ(rig.bytes_in_use(), 4 * page_size());
  rig.store->let_go(small->hold);
  rig.store->let_go(large->hold);
  rig.expect_in_order();
}

TEST(a_file_may_be_closed_before_its_stores) {
  CacheRig rig;
  for (uint64_t i = 0; i < 30; ++i) EXPECT(rig.put("key " + std::to_string(i), tiny(i)));
  EXPECT(rig.put_pages_of("large", 3));
  const auto chunks = rig.store->chunks();
  const auto small = rig.store->get("key 1");
  const auto large = rig.store->take("large");
  EXPECT(rig.file->close().ok());
  EXPECT_EQ(rig.store->check_usable().code(), ErrorCode::kClosed);
  EXPECT_EQ(rig.store->put_small({.key = "key 1"}, tiny(9)).status().code(), ErrorCode::kClosed);
  EXPECT(rig.store->remove("key 2"));
  EXPECT_EQ(rig.store->discard(kAll, kAll).given_back, 0u);
  rig.store->before_fork();
  rig.store->after_fork_in_parent();
  rig.store->let_go(small->hold);
  rig.store->let_go(large->hold);
  rig.store->clear();
  EXPECT_EQ(rig.store->count(), 0u);
}

// The pages on which a child that is forked now gets leases.
uint64_t leased_in_fork(CacheRig& rig) NO_THREAD_SAFETY_ANALYSIS {
  References::Counts leases;
  rig.file->stop_keepers_for_fork();
  native_tests::allocations_left = -1;  // what may fail is what the keepers do
  rig.file->lock_for_fork();
  rig.file->references().lease_pinned(&leases);
  rig.file->references().undo_leases(leases, 0);
  rig.file->unlock_after_fork();
  rig.file->let_keepers_go_on();
  uint64_t bytes = 0;
  for (const auto& [range, handles] : leases) bytes += range.length();
  return bytes / page_size();
}

TEST(a_fork_sees_what_is_held_as_pages_of_handles) {
  CacheRig rig;
  EXPECT(rig.put_pages_of("held", 2));
  EXPECT(rig.put_pages_of("taken", 3));
  EXPECT(rig.put_pages_of("idle", 4));
  const auto held = rig.store->get("held");
  const auto taken = rig.store->take("taken");
  EXPECT_EQ(leased_in_fork(rig), 5u);
  EXPECT_EQ(rig.store->verify(), std::nullopt);
  rig.store->let_go(held->hold);
  EXPECT_EQ(leased_in_fork(rig), 3u);
  rig.store->let_go(taken->hold);
  EXPECT_EQ(leased_in_fork(rig), 0u);
  rig.expect_in_order();
}

// There is a reserve for that: a child must not read what its parent gives back.
TEST(a_fork_sees_what_is_held_when_memory_runs_out) {
  bool failed = true;
  for (int64_t left = 0; failed; ++left) {
    CacheRig rig;
    // Many, so that what is known of them takes memory.
    constexpr int kValues = 400;
    for (int i = 0; i < kValues; ++i) EXPECT(rig.put_pages_of(std::to_string(i), 1));
    std::vector<Store::Value> held;
    for (int i = 0; i < kValues; i += 2) {
      const std::string key = std::to_string(i);
      const bool takes = i % 4 == 0;
      native_tests::allocations_left = takes ? left : -1;
      const auto value = takes ? rig.store->take(key) : rig.store->get(key);
      native_tests::allocations_left = -1;
      held.push_back(*value);
    }
    native_tests::allocations_left = left;
    EXPECT_EQ(leased_in_fork(rig), held.size());
    native_tests::allocations_left = left;
    rig.file->stop_keepers_for_fork();
    rig.file->let_keepers_go_on();
    failed = native_tests::allocations_left < 0;
    native_tests::allocations_left = -1;
    EXPECT_EQ(rig.store->verify(), std::nullopt);
    for (const Store::Value& value : held) rig.store->let_go(value.hold);
    rig.expect_in_order();
  }
}

}  // namespace
}  // namespace pgalloc::cache_store_test
