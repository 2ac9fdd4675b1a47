// What leaves a cache: because its key is removed or set anew, because there is no room, because its time is over,
// because the guard wants memory.
#include <algorithm>
#include <array>
#include <new>
#include <utility>

#include "base/check.h"
#include "base/reserve.h"
#include "cache/sizes.h"
#include "cache/store.h"

namespace pgalloc::cache {
namespace {

// From here on a forked child gets a lease on its pages.
void end_keep(Discarder& discarder, Holder& holder) {
  try {
    const Status status = with_reserve([&] { return discarder.end_keep(holder.pages()); });
    if (status.ok()) holder.kept = false;
  } catch (const std::bad_alloc&) {  // NOLINT: it gets none
  }
}

}  // namespace

// --- Entries -------------------------------------------------------------------------------------

uint64_t Store::index_bytes_of(uint64_t entry, const Fields& fields) const {
  const Tags::Tag* const tag = tags_.of(entry);
  return index_bytes_for(fields.key_length, fields.expires_ns != 0, tag != nullptr,
                         tag == nullptr ? 0 : tag->name.size());
}

// What is known of a value beside the index and its place.
void Store::forget(uint64_t entry, const Fields& fields, bool remember_key) {
  stats_.value_bytes -= fields.length;
  stats_.index_bytes -= index_bytes_of(entry, fields);
  if (fields.expires_ns != 0) --expiring_;
  tags_.remove(entry);
  if (remember_key) {
    discarded_.emplace_back(fields.key_place, fields.key_length);  // prepare() has made room for it
  } else {
    index_.keys().remove(fields.key_place, fields.key_length);
  }
}

void Store::leave_slot(const Fields& fields, Bin& bin) {
  Holder& holder = holders_.at(fields.holder);
  holders_.vacate(holder, holder.slot_of(fields.place));
  if (holder.live == 0 && !holder.open) drop(holder, bin);
}

void Store::remove_entry(uint64_t entry, Bin& bin) {
  const Fields fields = writer_.fields(entry);
  writer_.remove(entry);
  forget(entry, fields);  // after the index: others may be looking
  leave_slot(fields, bin);
}

bool Store::remove(std::string_view key) {
  Bin bin(leavings_);
  MutexLock lock(mu_);
  catch_up(bin);
  const auto entry = find_living(key, hash(key));
  if (entry) remove_entry(*entry, bin);
  return entry.has_value();
}

uint64_t Store::remove_tagged(std::string_view name, uint64_t most) {
  Bin bin(leavings_);
  MutexLock lock(mu_);
  catch_up(bin);
  const Tags::Tag* const tag = tags_.find(name);
  uint64_t left = tag == nullptr ? 0 : std::min(tag->size, most);
  stats_.evictions += left;
  const uint64_t count = left;
  for (; left > 0; --left) remove_entry(tag->first, bin);  // the last one takes the tag with it
  return count;
}

bool Store::clear(uint64_t most) {
  Bin bin(leavings_);
  MutexLock lock(mu_);
  return remove_all(most, bin);
}

bool Store::remove_all(uint64_t most, Bin& bin) {
  uint64_t removed = 0;
  while (Holder* const holder = holders_.any()) {
    removed += remove_holder(*holder, /*remember=*/false, bin) + 1;
    if (removed >= most) return holders_.any() == nullptr;
  }
  expiries_.clear();
  return true;
}

// What has expired, or a part of it, so that no call takes long: what is left is not found all the same.
void Store::catch_up(Bin& bin) {
  constexpr size_t kAtOnce = 10'000;
  if (expiries_.empty()) return;
  const auto holds = [&](uint64_t expires_ns, uint64_t entry) NO_THREAD_SAFETY_ANALYSIS {
    return writer_.in_use(entry) && writer_.fields(entry).expires_ns == expires_ns;
  };
  expiries_.take_until(now_ns(), kAtOnce,
                       [&](uint64_t expires_ns, uint64_t entry) NO_THREAD_SAFETY_ANALYSIS {
                         if (!holds(expires_ns, entry)) return;
                         remove_entry(entry, bin);
                         ++stats_.expirations;
                       });
  expiries_.tidy(expiring_, holds);
}

// --- Holders -------------------------------------------------------------------------------------

// With all its values. Their number.
uint64_t Store::remove_holder(Holder& holder, bool remember, Bin& bin) {
  const uint64_t count = holder.live;
  for (uint32_t slot = 0; slot < holder.values.size(); ++slot) {
    if (holder.values[slot] == 0) continue;
    const uint64_t entry = holder.values[slot] - 1;
    const Fields fields = writer_.fields(entry);
    writer_.remove(entry);
    forget(entry, fields, remember);
    holder.values[slot] = 0;
  }
  holder.live = 0;
  drop(holder, bin);
  return count;
}

// REQUIRES: it has no values.
void Store::drop(Holder& holder, Bin& bin) {
  queue_.remove(holder.waiting);
  std::unique_ptr<Holder> gone = holders_.remove(holder);
  if (gone->views == 0) return delete_if_free(std::move(gone), bin);
  // It is its views' from here on, as pages of any handle are.
  Holder& viewed = *gone.release();
  if (viewed.kept) end_keep(file_->discarder(), viewed);
}

// What no view shows any more waits in limbo as long as other processes hold it. They let go without a word: it is
// looked at from time to time, by those who come for memory.
void Store::delete_if_free(std::unique_ptr<Holder> gone, Bin& bin) {
  if (writer_.may_reuse(gone->number)) {
    holders_.free_number(gone->number);
    bin.add(std::move(gone));
    return;
  }
  Holder* const held = gone.release();
  held->next_gone = limbo_ == nullptr ? held : limbo_->next_gone;
  if (limbo_ == nullptr) {
    limbo_ = held;
  } else {
    limbo_->next_gone = held;
  }
  ++limbo_size_;
}

// At so many of those in limbo, in turn.
void Store::look_at_limbo(size_t count, Bin& bin) {
  for (count = std::min(count, limbo_size_); count > 0; --count) {
    Holder* const next = limbo_->next_gone;
    if (!writer_.may_reuse(next->number)) {
      limbo_ = next;
      continue;
    }
    if (next == limbo_) {
      limbo_ = nullptr;
    } else {
      limbo_->next_gone = next->next_gone;
    }
    --limbo_size_;
    holders_.free_number(next->number);
    bin.add(std::unique_ptr<Holder>(next));
  }
}

// --- Making room ---------------------------------------------------------------------------------

uint64_t Store::size_locked() const { return counted(holders_.bytes(), stats_.index_bytes); }

// Whether so much more would fit if it replaced the value of a key.
bool Store::fits(uint64_t page_bytes, uint64_t index_bytes, std::string_view key) const {
  if (!bytes_max_) return true;
  uint64_t pages = holders_.bytes() + page_bytes;
  uint64_t index = stats_.index_bytes + index_bytes;
  if (const auto before = key.empty() ? std::nullopt : find(key, hash(key))) {
    const Fields fields = writer_.fields(*before);
    const Holder& holder = holders_.at(fields.holder);
    if (!holder.is_slab()) pages -= holder.pages().length();  // a slab may be the next one's, too
    index -= index_bytes_of(*before, fields);
  }
  return counted(pages, index) <= *bytes_max_;
}

void Store::make_way(uint64_t page_bytes, uint64_t index_bytes, std::string_view key, Bin& bin) {
  while (!fits(page_bytes, index_bytes, key) && evict_one(bin)) {
  }
}

uint64_t Store::evict(uint64_t bytes, uint64_t most) {
  Bin bin(leavings_);
  MutexLock lock(mu_);
  catch_up(bin);
  const uint64_t before = size_locked();
  const uint64_t evictions = stats_.evictions;
  while (before - size_locked() < bytes && stats_.evictions - evictions < most && evict_one(bin)) {
  }
  return before - size_locked();
}

// What goes next, taken out of the queue; nullptr if nothing can. What other processes hold stays, and what they have
// looked at since is passed over once: the policy hears of that only here.
Holder* Store::next_victim(size_t tries) {
  for (; tries > 0; --tries) {
    Discardable* const victim = queue_.take_victim();
    if (victim == nullptr) return nullptr;
    Holder& holder = holders_.at(static_cast<uint32_t>(victim->id));
    uint32_t hits = 0;
    for (const auto& reader : writer_.readers()) hits += reader.hits(holder.number);
    if (std::exchange(holder.hits_seen, hits) == hits && writer_.may_reuse(holder.number)) {
      return &holder;
    }
    queue_.refuse(*victim);
  }
  return nullptr;
}

// Gives up what goes next. False if there is nothing.
bool Store::evict_one(Bin& bin) {
  constexpr size_t kTries = 64;  // those who put values must not go through all that others hold
  Holder* holder = next_victim(kTries);
  if (holder == nullptr) {
    if (const Discardable* const victim = queue_.take_victim_or_held()) {
      holder = &holders_.at(static_cast<uint32_t>(victim->id));
    }
  }
  if (holder == nullptr) {
    // What is being filled does not wait, nor does, with some policies, what is being read.
    holder = holders_.any_open_slab();
    if (holder == nullptr) holder = holders_.any();
  }
  if (holder == nullptr) return false;
  stats_.evictions += remove_holder(*holder, /*remember=*/false, bin);
  return true;
}

// A value of what would go next.
std::optional<uint64_t> Store::next_entry() {
  const auto first_of = [](const Holder& holder) {
    return std::find_if(holder.values.begin(), holder.values.end(),
                        [](uint32_t value) { return value != 0; });
  };
  const Holder* holder = nullptr;
  if (Discardable* const victim = queue_.take_victim_or_held()) {
    holder = &holders_.at(static_cast<uint32_t>(victim->id));
    queue_.refuse(*victim);  // its other values wait on, as if it had come last
  }
  if (holder == nullptr) {
    holders_.visit([&](const Holder& each) {
      if (holder == nullptr && each.live > 0) holder = &each;
    });
  }
  if (holder == nullptr) return std::nullopt;
  return *first_of(*holder) - 1;
}

// --- For the guard -------------------------------------------------------------------------------

std::optional<uint64_t> Store::next_order() {
  MutexLock lock(mu_);
  return queue_.front_order();
}

Discarded Store::discard(uint64_t bytes_max, uint64_t order_max) {
  std::array<FileRange, Discarder::kBatchMax> ranges;
  size_t count = 0;
  uint64_t bytes = 0;
  Bin bin(leavings_);
  {
    MutexLock lock(mu_);
    look_at_limbo(limbo_size_, bin);
    while (count < ranges.size() && bytes < bytes_max) {
      const auto order = queue_.front_order();
      if (!order || *order > order_max) break;
      Holder* const holder = next_victim(2 * queue_.size());
      if (holder == nullptr) break;
      const FileRange pages = holder->pages();
      const size_t in_limbo = limbo_size_;
      stats_.discards += remove_holder(*holder, remembers_discarded_, bin);
      bytes += pages.length();
      // Unless another process has come to hold it just now.
      if (limbo_size_ == in_limbo) ranges[count++] = pages;
    }
  }
  std::sort(ranges.begin(), ranges.begin() + count,
            [](const FileRange& a, const FileRange& b) { return a.start < b.start; });
  const Discarded discarded = file_->discarder().discard_kept({ranges.data(), count});
  return {.bytes = bytes, .given_back = discarded.given_back};
}

// --- Forks ---------------------------------------------------------------------------------------

void Store::before_fork() {
  mu_.lock_unranked();
  holders_.visit([&](Holder& holder) {
    if (holder.views > 0 && holder.kept) end_keep(file_->discarder(), holder);
  });
}

void Store::after_fork_in_parent() {
  holders_.visit([&](Holder& holder) {
    if (holder.kept) return;
    try {
      const Status status =
          with_reserve([&] { return file_->discarder().begin_keep(holder.pages()); });
      if (status.ok()) holder.kept = true;
    } catch (const std::bad_alloc&) {  // NOLINT: it is not discarded
    }
  });
  mu_.unlock_unranked();
}

}  // namespace pgalloc::cache
