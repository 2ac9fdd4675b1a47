// All that is in a cache, at once: its keys, its figures, what an image says of it.
#include <algorithm>
#include <memory>
#include <unordered_set>
#include <utility>

#include "cache/sizes.h"
#include "cache/store.h"

namespace pgalloc::cache {

Store::Keys Store::keys() {
  Bin bin(leavings_);
  MutexLock lock(mu_);
  catch_up(bin);
  Keys keys;
  if (closed_.load(std::memory_order_relaxed)) return keys;  // there is no index any more
  keys.ends.reserve(writer_.size());
  for (uint64_t entry = 0; entry < writer_.entries_used(); ++entry) {
    if (!writer_.in_use(entry)) continue;
    const Fields fields = writer_.fields(entry);
    keys.bytes += index_.keys().at(fields.key_place, fields.key_length);
    keys.ends.push_back(keys.bytes.size());
  }
  return keys;
}

std::optional<std::string> Store::take_discarded() {
  MutexLock lock(mu_);
  if (discarded_.empty()) return std::nullopt;
  const auto [place, length] = discarded_.back();
  std::string key = index_.keys().at(place, length);
  index_.keys().remove(place, length);
  discarded_.pop_back();
  return key;
}

uint64_t Store::count() {
  Bin bin(leavings_);
  MutexLock lock(mu_);
  catch_up(bin);
  return writer_.size();
}

uint64_t Store::size() {
  Bin bin(leavings_);
  MutexLock lock(mu_);
  catch_up(bin);
  return size_locked();
}

StoreStats Store::stats() {
  Bin bin(leavings_);
  MutexLock lock(mu_);
  catch_up(bin);
  StoreStats stats = stats_;
  for (const Reader& reader : readers_) {
    stats.hits += reader.file.hits();
    stats.misses += reader.file.misses();
  }
  stats.entries = writer_.size();
  stats.page_bytes = holders_.bytes();
  stats.size = size_locked();
  return stats;
}

std::vector<Store::SavedHolder> Store::save() {
  Bin bin(leavings_);
  MutexLock lock(mu_);
  catch_up(bin);
  std::vector<SavedHolder> all;
  all.reserve(holders_.size());
  holders_.visit([&](const Holder& holder) NO_THREAD_SAFETY_ANALYSIS {
    SavedHolder& saved = all.emplace_back();
    saved.pages = holder.pages();
    saved.slot_bytes = holder.slot_bytes;
    saved.values.reserve(holder.live);
    for (const uint32_t value : holder.values) {
      if (value == 0) continue;
      const Fields fields = writer_.fields(value - 1);
      const Tags::Tag* const tag = tags_.of(value - 1);
      saved.values.push_back({.offset = fields.place - holder.pages().start,
                              .length = fields.length,
                              .expires_ns = fields.expires_ns,
                              .key = index_.keys().at(fields.key_place, fields.key_length),
                              .tag = tag == nullptr ? std::nullopt : std::optional(tag->name)});
    }
  });
  return all;
}

namespace {

Status corrupt(const char* what) { return Status::error(ErrorCode::kSnapshotCorrupt, what); }

// Whether it can be so.
Status check(const Store::SavedHolder& saved) {
  const uint64_t bytes = saved.pages.length();
  const bool is_slab = saved.slot_bytes > 0;
  const bool possible =
      is_slab ? is_possible_slab(saved.slot_bytes, bytes) : saved.values.size() == 1;
  if (!possible) return corrupt("a cache in the image has impossible pages");
  std::unordered_set<uint64_t> slots;
  std::unordered_set<std::string_view> keys;
  for (const Store::SavedValue& value : saved.values) {
    const uint64_t room = is_slab ? saved.slot_bytes : bytes;
    const uint64_t misplaced = is_slab ? value.offset % saved.slot_bytes : value.offset;
    if (value.length > room || value.offset > bytes - room || misplaced != 0) {
      return corrupt("a value of a cache in the image is not where it could be");
    }
    if (!slots.insert(value.offset).second) {
      return corrupt("two values of a cache in the image share a slot");
    }
    if (!keys.insert(value.key).second) return corrupt("a cache in the image has a key twice");
  }
  return {};
}

}  // namespace

Status Store::restore(const SavedHolder& saved) {
  PGALLOC_RETURN_IF_ERROR(check(saved));
  auto adopted =
      std::make_unique<Holder>();  // first: it gives the pages back where they are not taken over
  adopted->waiting.range = saved.pages;
  Bin bin(leavings_);
  PGALLOC_RETURN_IF_ERROR(file_->references().adopt(saved.pages));
  Status status;
  try {
    if (!saved.values.empty()) {
      status = take_over(saved);
      if (status.ok()) return status;
    }
  } catch (...) {
    bin.add(std::move(adopted));
    throw;
  }
  bin.add(std::move(adopted));
  return status;
}

// Takes over a reference on the pages.
Status Store::take_over(const SavedHolder& saved) {
  Bin bin(leavings_);
  MutexLock lock(mu_);
  PGALLOC_RETURN_IF_ERROR(check_usable());
  std::vector<Draft> drafts;
  drafts.reserve(saved.values.size());
  for (const SavedValue& value : saved.values) {
    PGALLOC_RETURN_IF_ERROR(
        prepare(drafts.emplace_back(index_.keys(), tags_),
                {.key = value.key, .tag = value.tag, .expires_ns = value.expires_ns}, bin,
                saved.values.size()));
  }
  const auto hash = saved.slot_bytes > 0
                        ? std::nullopt
                        : std::optional(hash_of(saved.values.front().key, secret_));
  const Result<Holder*> holder = add_waiting(saved.pages, saved.slot_bytes, hash);
  if (!holder.ok()) return holder.status().clone();
  Holder& its = **holder;
  for (size_t i = 0; i < drafts.size(); ++i) {
    enter(drafts[i], its, its.slot_of(saved.pages.start + saved.values[i].offset),
          saved.values[i].length, bin);
  }
  if (its.is_slab()) {
    its.fresh = its.slots();
    for (uint32_t slot = its.slots(); slot-- > 0;) {
      if (its.values[slot] == 0) holders_.vacate(its, slot);
    }
  }
  make_way(0, 0, {}, bin);
  return {};
}

std::optional<std::string> Store::verify() {
  Bin bin(leavings_);
  MutexLock lock(mu_);
  catch_up(bin);
  if (auto broken = holders_.verify()) return broken;
  if (bytes_max_ && size_locked() > *bytes_max_) return "the size exceeds maxsize";
  uint64_t entries = 0, value_bytes = 0, index_bytes = 0, tagged = 0, expiring = 0;
  std::optional<std::string> broken;
  holders_.visit([&](const Holder& holder) NO_THREAD_SAFETY_ANALYSIS {
    const std::string its_name = "holder " + std::to_string(holder.number);
    if (!holder.kept) broken = its_name + " is out of the guard's reach";
    if (holder.open && holder.waiting.list != nullptr) {
      broken = its_name + " is filled while it may be discarded";
    }
    if (!holder.open && holder.views == 0 && holder.waiting.list == nullptr) {
      broken = its_name + " does not wait to be discarded";
    }
    for (uint32_t slot = 0; slot < holder.values.size(); ++slot) {
      if (holder.values[slot] == 0) continue;
      const uint64_t entry = holder.values[slot] - 1;
      if (!writer_.in_use(entry)) {
        broken = its_name + " has a value that is no key's";
        continue;
      }
      const Fields fields = writer_.fields(entry);
      const std::string key = index_.keys().at(fields.key_place, fields.key_length);
      if (fields.holder != holder.number || fields.place != holder.place_of(slot)) {
        broken = its_name + " has a value of another place";
      }
      if (fields.length > holder.room()) broken = its_name + " has a value longer than its room";
      if (fields.hash != hash(key) || find(key, fields.hash) != entry) {
        broken = its_name + " has a value that is not found by its key";
      }
      ++entries;
      value_bytes += fields.length;
      index_bytes += index_bytes_of(entry, fields);
      tagged += tags_.of(entry) != nullptr ? 1 : 0;
      expiring += fields.expires_ns != 0 ? 1 : 0;
    }
  });
  if (broken) return broken;
  if (entries != writer_.size()) return "a key's value is in no holder";
  if (value_bytes != stats_.value_bytes) return "value_bytes is not the sum of the values' lengths";
  if (index_bytes != stats_.index_bytes) {
    return "index_bytes is not the sum of what the values cost there";
  }
  if (tagged != tags_.entries()) return "the tags are not those of the values";
  if (expiring != expiring_ || expiring > expiries_.size()) return "a value would never expire";
  return std::nullopt;
}

}  // namespace pgalloc::cache
