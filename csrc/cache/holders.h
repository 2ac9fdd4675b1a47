// Purpose: what a cache keeps as one: the pages of a value, or a slab, which small values share. A slab is cut into slots
// of one size; it is open while it is filled, and closed when it is full.
//
//   slot size    slab: whole pages, so that little is left over
//   up to 512    4 pages; so up to 3 KiB, beyond which a value has pages of its own
//
// Thread safety: externally synchronised (the cache's lock).
//
// Invariants, proved by verify()
//   1. A slot has one value at a time, or none: then it was never used, or is vacant.
//   2. Closed slabs with vacant slots are known by the size of these.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/units.h"
#include "pages/discardable.h"

namespace pgalloc::cache {

struct Holder {
  Discardable waiting;         // as the policy knows it; its range: the pages
  uint32_t number = 0;
  uint32_t slot_bytes = 0;     // 0: one value has all of it
  uint32_t live = 0;           // how many values are here
  uint32_t fresh = 0;          // the first slot that was never used
  uint32_t hits_seen = 0;      // by the policy
  bool open = false;
  std::vector<uint32_t> vacant;
  std::vector<uint32_t> values;  // by slot: 1 + the number of the entry; 0: none

  FileRange pages() const { return waiting.range; }
  bool is_slab() const { return slot_bytes > 0; }
  uint32_t slots() const {
    return is_slab() ? static_cast<uint32_t>(pages().length() / slot_bytes) : 1;
  }
  uint32_t slot_of(uint64_t place) const {
    return is_slab() ? static_cast<uint32_t>((place - pages().start) / slot_bytes) : 0;
  }
  uint64_t place_of(uint32_t slot) const { return pages().start + uint64_t{slot} * slot_bytes; }
};

// Values up to this length share pages: a longer one would have a slab nearly to itself.
inline uint64_t small_value_max() { return page_size() / 4 * 3; }
// The bytes of a slab for values of this length, and of its slots: what a slab holds most of.
uint64_t slab_bytes_for(uint64_t length);
uint32_t slot_bytes_for(uint64_t length);

class Holders {
 public:
  explicit Holders(uint32_t count_max) : count_max_(count_max) {}

  Holder& at(uint32_t number) { return *holders_[number]; }
  const Holder& at(uint32_t number) const { return *holders_[number]; }
  size_t size() const { return size_; }
  uint64_t bytes() const { return bytes_; }

  // Pages for one value, or a slab that is open from here on. nullptr if there are too many.
  Holder* add(FileRange pages, uint32_t slot_bytes);
  // REQUIRES: no value is there.
  void remove(Holder& holder);

  // The open slab of this slot size that was opened last; nullptr if there is none.
  Holder* open_slab(uint32_t slot_bytes);
  // A closed one with vacant slots for which can_be_used(holder) is true, of the first few; it is open from here on.
  template <class CanBeUsed>
  Holder* reopen(uint32_t slot_bytes, CanBeUsed can_be_used) {
    constexpr int kLooks = 4;
    const auto with_vacant = with_vacant_.find(slot_bytes);
    if (with_vacant == with_vacant_.end()) return nullptr;
    int looks = 0;
    for (const uint32_t number : with_vacant->second) {
      if (looks++ == kLooks) break;
      Holder& holder = at(number);
      if (!can_be_used(holder)) continue;
      open(holder);
      return &holder;
    }
    return nullptr;
  }
  void close(Holder& slab);
  std::vector<Holder*> open_slabs();

  // A slot of an open slab; `may_reuse` says whether vacant ones may be had. Nothing if there is none.
  std::optional<uint32_t> take_slot(Holder& slab, bool may_reuse);
  void put(Holder& holder, uint32_t slot, uint32_t entry);
  void vacate(Holder& holder, uint32_t slot);

  template <class Visit>
  void visit(Visit visit) {
    for (const auto& holder : holders_) {
      if (holder != nullptr) visit(*holder);
    }
  }
  std::optional<std::string> verify() const;

 private:
  void open(Holder& slab);

  const uint32_t count_max_;
  std::vector<std::unique_ptr<Holder>> holders_;
  std::vector<uint32_t> unused_;  // numbers below holders_.size()
  size_t size_ = 0;
  uint64_t bytes_ = 0;
  std::map<uint32_t, std::vector<uint32_t>> open_;        // by the size of slots
  std::map<uint32_t, std::set<uint32_t>> with_vacant_;    // closed ones, by the size of slots
};

}  // namespace pgalloc::cache
