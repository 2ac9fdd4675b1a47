// Purpose: a cache's store on a MemoryFile, and puts as the binding does them.
//
// Thread safety: as the store's, but for what says otherwise.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cache/sizes.h"
#include "cache/store.h"
#include "native/memory.h"
#include "native/support.h"

namespace pgalloc::native_tests {

inline constexpr std::array kAllPolicies{DiscardPolicy::kLru, DiscardPolicy::kSieve,
                                         DiscardPolicy::kS3Fifo};

struct CacheRig {
  using Store = cache::Store;

  explicit CacheRig(const cache::StoreOptions& options = {},
                    std::shared_ptr<MemoryFile> its_file = std::move(*MemoryFile::create({}, {})))
      : file(std::move(its_file)), store(std::move(*Store::create(file, options))) {
    file->clock().use_manual(std::chrono::seconds(1), {});
  }

  // What went wrong, if anything did.
  Status put(const cache::Item& item, std::string_view data) {
    return store->shares_pages(data.size()) ? put_small(item, data) : put_pages(item, data);
  }
  bool put(std::string_view key, std::string_view data) { return put({.key = key}, data).ok(); }
  // So many pages.
  bool put_pages_of(std::string_view key, uint64_t count) {
    return put_pages({.key = key}, std::string(count * page_size(), key.front())).ok();
  }

  Status put_small(const cache::Item& item, std::string_view data) {
    while (true) {
      const Result<cache::Store::Put> done = store->put_small(item, data);
      if (!done.ok()) return done.status().clone();
      if (*done != cache::Store::Put::kWantsSlab) return {};
      PGALLOC_RETURN_IF_ERROR(add_slab(item, data.size()));
    }
  }
  Status add_slab(const cache::Item& item, uint64_t length) {
    const Result<FileRange> pages = file->allocate(
        {.length = cache::slab_bytes_for(length), .mode = AllocationMode::kAllocateAndCommit},
        true);
    if (!pages.ok()) return pages.status().clone();
    const Owned owned(*this, *pages);
    const Result<char*> mapped = file->map(*pages);
    if (!mapped.ok()) return mapped.status().clone();
    PGALLOC_RETURN_IF_ERROR(store->add_slab(item, *pages, cache::slot_bytes_for(length)));
    owned.gone = true;
    return {};
  }
  Status put_pages(const cache::Item& item, std::string_view data) {
    const Result<FileRange> pages = file->allocate(
        {.length = cache::pages_for(data.size()), .will_be_overwritten = true}, true);
    if (!pages.ok()) return pages.status().clone();
    const Owned owned(*this, *pages);
    const Result<char*> address = file->map(*pages);
    if (!address.ok()) return address.status().clone();
    std::memcpy(*address, data.data(), data.size());
    std::memset(*address + data.size(), 0, pages->length() - data.size());
    const Result<bool> done = store->put_pages(item, *pages, data.size());
    if (!done.ok()) return done.status().clone();
    owned.gone = *done;
    return {};
  }

  std::string_view bytes_of(const Store::Value& value) {
    const Result<char*> address = file->map(value.pages);
    if (!EXPECT(address.ok())) return {};
    return {*address + (value.place - value.pages.start), value.length};
  }
  // The value, if there is one.
  std::optional<std::string> get(std::string_view key) {
    const auto value = store->get(key);
    if (!value) return std::nullopt;
    std::string bytes(bytes_of(*value));
    store->let_go(value->hold);
    return bytes;
  }
  bool has(std::string_view key) {
    for (const std::string& each : keys()) {
      if (each == key) return true;
    }
    return false;
  }
  std::vector<std::string> keys() {
    std::vector<std::string> all;
    const Store::Keys keys = store->keys();
    uint64_t start = 0;
    for (const uint64_t end : keys.ends) {
      all.push_back(keys.bytes.substr(start, end - start));
      start = end;
    }
    std::sort(all.begin(), all.end());
    return all;
  }
  uint64_t bytes_in_use() {
    uint64_t bytes = 0;
    for (const auto& segment : file->segments()) {
      if (segment.use.refs > 0) bytes += segment.range.length();
    }
    return bytes;
  }
  // REQUIRES: nothing is held, and only the store has pages.
  void expect_in_order() {
    EXPECT_EQ(store->verify(), std::nullopt);
    EXPECT_EQ(file->verify(), std::nullopt);
    EXPECT_EQ(bytes_in_use(), store->stats().page_bytes);
  }

  const std::shared_ptr<MemoryFile> file;
  const std::shared_ptr<Store> store;

 private:
  // Pages of the caller, until they are the store's.
  struct Owned {
    Owned(CacheRig& rig, FileRange pages) : rig(rig), pages(pages) {}
    ~Owned() {
      if (gone) return;
      const bool all_fail =
          std::exchange(native_tests::all_fail, false);  // what is tried is the store
      EXPECT(rig.file->dec_ref(pages).ok() || rig.file->closed());
      native_tests::all_fail = all_fail;
    }
    Owned(const Owned&) = delete;
    CacheRig& rig;
    const FileRange pages;
    mutable bool gone = false;
  };
};

}  // namespace pgalloc::native_tests
