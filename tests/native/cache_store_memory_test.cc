// What one cache holds where memory runs out: each allocation of each call is made to fail, alone and with all that
// follow.

#include <algorithm>
#include <functional>
#include <map>

#include "cache/store.h"
#include "native/cache_rig.h"
#include "native/memory.h"

namespace pgalloc::cache_store_memory_test {
namespace {

using cache::Item;
using cache::Store;
using native_tests::CacheRig;
using native_tests::context;
using native_tests::kAllPolicies;
using native_tests::pages;

constexpr uint64_t kAll = UINT64_MAX;

// Values that share pages and values that do not, slabs with vacant slots, tags, times, values that are held.
struct Scene : CacheRig {
  using Values = std::map<std::string, std::string>;

  explicit Scene(DiscardPolicy policy, std::optional<uint64_t> bytes_max = {})
      : CacheRig({.policy = policy, .bytes_max = bytes_max, .remembers_discarded = true}) {
    for (int i = 0; i < 40; ++i) set("small " + std::to_string(i), 1000, i % 3 == 0 ? "tag" : "");
    for (int i = 0; i < 6; ++i) set("large " + std::to_string(i), (i + 1) * page_size(), "other");
    for (int i = 0; i < 40; i += 5) drop("small " + std::to_string(i));
    for (const char* key : {"small 21", "small 39", "large 3"}) {
      held.push_back(*store->get(key));
      held_bytes.emplace_back(bytes_of(held.back()));
    }
    // A closed slab that is viewed, all of whose values are gone; pages that are only held.
    set("gone", 5 * page_size(), "");
    held.push_back(*store->take("gone"));
    held_bytes.push_back(values["gone"]);
    values.erase("gone");
  }
  ~Scene() {
    for (const Store::Value& value : held) store->let_go(value.hold);
  }

  void set(const std::string& key, uint64_t length, std::string_view tag, uint64_t expires_ns = 0) {
    std::string bytes(length, static_cast<char>('a' + length % 26));
    for (size_t i = 0; i < std::min(key.size(), bytes.size()); ++i) bytes[i] = key[i];
    Item item{.key = key, .expires_ns = expires_ns};
    if (!tag.empty()) item.tag = tag;
    Values next{{key, bytes}};  // so that there is no allocation after the call
    EXPECT(put(item, bytes).ok());
    next.merge(values);
    values.swap(next);
  }
  void drop(const std::string& key) {
    EXPECT(store->remove(key));
    values.erase(key);
  }
  uint64_t now_ns() { return static_cast<uint64_t>(file->clock().now().count()); }

  void check() {
    EXPECT_EQ(store->verify(), std::nullopt);
    EXPECT_EQ(file->verify(), std::nullopt);
    for (size_t i = 0; i < held.size(); ++i) EXPECT_EQ(bytes_of(held[i]), held_bytes[i]);
    if (!store->bytes_max()) EXPECT_EQ(store->count(), values.size());
    for (const auto& [key, bytes] : values) {
      const auto its = get(key);
      if (!its && (store->bytes_max() || store->stats().discards > 0)) continue;
      EXPECT_EQ(its, bytes);
    }
    // Nothing is lost, if some of it had to wait for memory.
    for (const Store::Value& value : std::exchange(held, {})) store->let_go(value.hold);
    if (store->check_usable().ok()) {
      EXPECT(put("more", "more"));
      EXPECT(put("more", std::string(4 * page_size(), 'm')));
      EXPECT(store->remove("more"));
    }
    expect_in_order();
    store->clear();
    expect_in_order();
    EXPECT_EQ(file->take_warnings(), std::vector<std::string>{});
  }

  Values values;
  std::vector<Store::Value> held;
  std::vector<std::string> held_bytes;
};

// Allocation by allocation, until none of them fails. `call` says what is there afterwards.
template <class Make>
void fail_each(const char* name, Make make, const std::function<void(Scene&)>& call) {
  for (const bool all : {false, true}) {
    bool failed = true;
    for (int64_t left = 0; failed; ++left) {
      const std::unique_ptr<Scene> scene = make();
      context = std::string(name) + (all ? ": all allocations from number " : ": allocation ") +
                std::to_string(left);
      native_tests::all_fail_then = all;
      native_tests::allocations_left = left;
      try {
        call(*scene);
      } catch (const std::bad_alloc&) {  // NOLINT
      }
      failed = native_tests::allocations_left < 0;
      native_tests::allocations_left = -1;
      native_tests::all_fail = native_tests::all_fail_then = false;
      scene->check();
      if (native_tests::failures > 0) return;
    }
  }
}

// Whatever happens, it lets go.
struct Held {
  Held(Scene& its, const Store::Value& value) : its(its), value(value) {}
  ~Held() { its.store->let_go(value.hold); }
  Held(const Held&) = delete;
  Scene& its;
  const Store::Value value;
};

struct Call {
  const char* name;
  std::function<void(Scene&)> call;
};

// Each leaves all as it was if it fails.
const std::vector<Call>& calls() {
  static const std::vector<Call> all{
      {"get",
       [](Scene& its) {
         if (const auto value = its.store->get("small 1")) its.store->let_go(value->hold);
         EXPECT(!its.store->get("no key"));
       }},
      {"get what is being filled",
       [](Scene& its) {
         const Held held(its, *its.store->get("small 38"));
         its.set("small 38", 1000, "");
       }},
      {"let_go",
       [](Scene& its) {
         while (!its.held.empty()) {
           const Store::Value value = its.held.back();
           its.held.pop_back();
           its.store->let_go(value.hold);
         }
       }},
      {"take",
       [](Scene& its) {
         for (const char* key : {"small 7", "large 2"}) {
           const std::string its_key(key);
           const Held held(its, *its.store->take(its_key));
           its.values.erase(its_key);
         }
       }},
      {"take_next",
       [](Scene& its) {
         const auto next = its.store->take_next();
         const Held held(its, next->second);
         its.values.erase(next->first);
       }},
      {"remove",
       [](Scene& its) {
         for (const char* key : {"small 21", "small 8", "large 3", "large 4"}) its.drop(key);
       }},
      {"remove_tagged",
       [](Scene& its) {
         for (const char* tag : {"tag", "other", "none"}) {
           (void)its.store->remove_tagged(tag);
           std::erase_if(its.values, [&](const auto& each) {
             const bool large = each.first[0] == 'l';
             if (tag[0] == 'o') return large;
             return tag[0] == 't' && !large && std::stoi(each.first.substr(6)) % 3 == 0;
           });
         }
       }},
      {"clear", [](Scene& its) { its.store->clear(), its.values.clear(); }},
      {"put into a slab that is being filled", [](Scene& its) { its.set("new", 1001, "new tag"); }},
      {"put into a slab of its own", [](Scene& its) { its.set("new", 100, "new tag", kAll); }},
      {"put pages", [](Scene& its) { its.set("new", 2 * page_size(), "new tag", kAll); }},
      {"put a small value again", [](Scene& its) { its.set("small 3", 999, ""); }},
      {"put a small value of another size again", [](Scene& its) { its.set("small 3", 9, ""); }},
      {"put a large value again", [](Scene& its) { its.set("large 2", page_size(), "another"); }},
      {"put a small value for a large one", [](Scene& its) { its.set("large 2", 7, ""); }},
      {"put a large value for a small one", [](Scene& its) { its.set("small 6", 7777, ""); }},
      {"put many",
       [](Scene& its) {
         for (int i = 0; i < 30; ++i) its.set("new " + std::to_string(i), 1000, "tag");
       }},
      {"expire",
       [](Scene& its) {
         for (const char* key : {"new", "small 4", "large 4"}) {
           its.set(key, 1500, "", its.now_ns() + 1);
         }
         its.file->clock().advance(std::chrono::nanoseconds(1));
         for (const char* key : {"new", "small 4", "large 4"}) its.values.erase(key);
         EXPECT(!its.store->get("new"));
       }},
      {"evict",
       [](Scene& its) {
         EXPECT(its.store->evict(10 * page_size()) >= 10 * page_size());
         std::erase_if(its.values,
                       [&](const auto& each) { return !its.store->contains(each.first); });
       }},
      {"discard",
       [](Scene& its) {
         EXPECT(its.file->discarder().discard(10 * page_size(), kAll).bytes >= 10 * page_size());
         while (const auto key = its.store->take_discarded()) its.values.erase(*key);
       }},
      {"fork",
       [](Scene& its) {
         its.file->stop_keepers_for_fork();
         its.file->let_keepers_go_on();
       }},
      {"look at all",
       [](Scene& its) {
         EXPECT_EQ(its.store->keys().ends.size(), its.values.size());
         EXPECT_EQ(its.store->stats().entries, its.values.size());
         EXPECT(its.store->save().size() > 6);
       }},
      {"close",
       [](Scene& its) {
         its.store->close();
         its.values.clear();
       }},
  };
  return all;
}

void fail_calls(DiscardPolicy policy) {
  for (const Call& each : calls()) {
    fail_each(each.name, [&] { return std::make_unique<Scene>(policy); }, each.call);
    if (native_tests::failures > 0) return;
  }
}

TEST(each_allocation_fails_with_lru) { fail_calls(DiscardPolicy::kLru); }
TEST(each_allocation_fails_with_sieve) { fail_calls(DiscardPolicy::kSieve); }
TEST(each_allocation_fails_with_s3_fifo) { fail_calls(DiscardPolicy::kS3Fifo); }

TEST(each_allocation_fails_where_others_have_to_make_way) {
  for (const DiscardPolicy policy : kAllPolicies) {
    const auto make = [&] { return std::make_unique<Scene>(policy, 256 * page_size()); };
    fail_each("put where there is no room", make, [](Scene& its) {
      its.set("big", 230 * page_size(), "");
      its.set("small", 1000, "tag", kAll);
      its.set("large 1", 20 * page_size(), "tag", kAll);
      its.set("big", 1000, "");
    });
    if (native_tests::failures > 0) return;
  }
}

TEST(each_allocation_fails_while_a_store_is_made) {
  const auto file = std::move(*MemoryFile::create({}, {}));
  for (const bool all : {false, true}) {
    bool failed = true;
    for (int64_t left = 0; failed; ++left) {
      native_tests::all_fail_then = all;
      native_tests::allocations_left = left;
      std::shared_ptr<Store> store;
      try {
        if (auto made = Store::create(file, {}); made.ok()) store = std::move(*made);
      } catch (const std::bad_alloc&) {  // NOLINT
      }
      failed = native_tests::allocations_left < 0;
      native_tests::allocations_left = -1;
      native_tests::all_fail = native_tests::all_fail_then = false;
      EXPECT(failed || store != nullptr);
      // One that was not made is not asked.
      EXPECT_EQ(file->discarder().discard(kAll, kAll).bytes, 0u);
    }
  }
}

// What an image brings, of which every other value is put into a store that has its key already.
TEST(each_allocation_fails_while_values_are_restored) {
  const uint32_t slot_bytes = cache::slot_bytes_for(1000);
  Store::SavedHolder slab{.pages = pages(0, 4), .slot_bytes = slot_bytes};
  for (uint64_t i = 0; i < 12; i += 2) {
    slab.values.push_back(
        {.offset = i * slot_bytes,
         .length = 1000,
         .expires_ns = i % 4 == 0 ? 0 : kAll - i,
         .key = "a key of some length, number " + std::to_string(i),
         .tag = i % 3 == 0 ? std::nullopt : std::optional("a tag of some length")});
  }
  const Store::SavedHolder empty{.pages = pages(4, 8), .slot_bytes = slot_bytes};
  const Store::SavedHolder whole{.pages = pages(8, 10),
                                 .values = {{.length = 5000, .key = slab.values[2].key}}};
  for (const bool all : {false, true}) {
    bool failed = true;
    for (int64_t left = 0; failed; ++left) {
      context = (all ? "all from " : "allocation ") + std::to_string(left);
      CacheRig rig;
      EXPECT(rig.file->restore(10 * page_size(), {{.range = pages(0, 10)}}).ok());
      EXPECT(rig.put(slab.values[0].key, "before"));
      native_tests::all_fail_then = all;
      native_tests::allocations_left = left;
      size_t done = 0;
      try {
        for (const auto& each : {std::cref(slab), std::cref(empty), std::cref(whole)}) {
          EXPECT(rig.store->restore(each).ok());
          ++done;
        }
      } catch (const std::bad_alloc&) {  // NOLINT
      }
      failed = native_tests::allocations_left < 0;
      native_tests::allocations_left = -1;
      native_tests::all_fail = native_tests::all_fail_then = false;
      EXPECT(failed || done == 3);
      EXPECT_EQ(rig.store->count(), done == 0 ? 1u : slab.values.size());
      EXPECT_EQ(rig.get(slab.values[0].key)->size(), done == 0 ? 6u : 1000u);
      // What was not adopted can be once more; what was is the store's, or gone.
      EXPECT_EQ(rig.store->verify(), std::nullopt);
      EXPECT_EQ(rig.file->verify(), std::nullopt);
      EXPECT_EQ(rig.bytes_in_use(),
                rig.store->stats().page_bytes + rig.file->references().unadopted_bytes());
      if (native_tests::failures > 0) return;
    }
  }
}

}  // namespace
}  // namespace pgalloc::cache_store_memory_test
