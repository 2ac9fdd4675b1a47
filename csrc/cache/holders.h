// Purpose: what a cache keeps as one: the pages of a value, or a slab, which small values share (sizes.h).
//
// Thread safety: externally synchronised (the cache's lock).
//
// Invariants, proved by verify()
//   1. A slot has one value at a time, or none: then it was never used, or is vacant.
//   2. A slab is open (being filled, the only one of its slot size) or closed. A closed one has a value at least, and
//      waits in the policy's queue, unless it is viewed; one with vacant slots is known by their size.
//   3. A holder that has left its tables belongs to those who still hold it, and is deleted when none does.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/units.h"
#include "pages/discardable.h"

namespace pgalloc::cache {

struct Holder {
  Discardable waiting;  // as the policy knows it; its range: the pages
  uint32_t number = 0;
  uint32_t slot_bytes = 0;  // 0: one value has all of it
  uint32_t live = 0;        // how many values are here
  uint32_t fresh = 0;       // the first slot that was never used
  uint64_t views = 0;       // of this process
  uint32_t hits_seen = 0;   // of other processes, by the policy
  bool open = false;
  bool kept = false;                  // by the file's discarder for this cache, see Keeper
  bool gone = false;                  // from the tables
  std::vector<uint32_t> vacant;       // slots; it has room for all
  std::vector<uint32_t> values;       // by slot: 1 + the number of the entry; 0: none
  Holder* previous_vacant = nullptr;  // of the closed ones with vacant slots of this size
  Holder* next_vacant = nullptr;
  Holder* next_gone = nullptr;  // of those in a Bin, or in limbo

  FileRange pages() const { return waiting.range; }
  bool is_slab() const { return slot_bytes > 0; }
  uint32_t slots() const {
    return is_slab() ? static_cast<uint32_t>(pages().length() / slot_bytes) : 1;
  }
  uint32_t slot_of(uint64_t place) const {
    return is_slab() ? static_cast<uint32_t>((place - pages().start) / slot_bytes) : 0;
  }
  uint64_t place_of(uint32_t slot) const { return pages().start + uint64_t{slot} * slot_bytes; }
  uint64_t room() const { return is_slab() ? slot_bytes : pages().length(); }
};

class Holders {
 public:
  explicit Holders(uint32_t count_max) : count_max_(count_max) {}

  Holder& at(uint32_t number) const { return *holders_[number]; }
  size_t size() const { return size_; }
  // Numbers from here on were never given.
  uint64_t numbers() const { return holders_.size(); }
  uint64_t bytes() const { return bytes_; }

  // Pages for one value, or a slab that is not open. nullptr if there are too many.
  Holder* add(FileRange pages, uint32_t slot_bytes);
  // Its number stays its own until free_number(): other processes may know it by that.
  // REQUIRES: no value is there, and no list of a policy has it.
  std::unique_ptr<Holder> remove(Holder& holder);
  void free_number(uint32_t number) { unused_.push_back(number); }
  // One of them; nullptr if there is none.
  Holder* any();

  // The open slab of this slot size, and of all; nullptr if there is none.
  Holder* open_slab(uint32_t slot_bytes) const;
  Holder* any_open_slab() const;
  // REQUIRES: no slab of its slot size is open.
  void open(Holder& slab);
  void close(Holder& slab);
  // The first closed slab with vacant slots of this size. What is asked for next comes after it: see put_off().
  Holder* first_vacant(uint32_t slot_bytes) const;
  // It comes last from here on: what is read for long must not be in the way of the others.
  void put_off(Holder& slab);

  // A slot that was never used, or with `reuse` one that was; nothing if there is none.
  std::optional<uint32_t> take_slot(Holder& holder, bool reuse);
  void set(Holder& holder, uint32_t slot, uint64_t entry);
  // The value in this slot is gone; or a slot that was taken is not used.
  void vacate(Holder& holder, uint32_t slot);

  template <class Visit>
  void visit(Visit visit) const {
    for (const auto& holder : holders_) {
      if (holder != nullptr) visit(*holder);
    }
  }
  std::optional<std::string> verify() const;

 private:
  // Of one slot size.
  struct Class {
    Holder* open = nullptr;
    Holder* first_vacant = nullptr;
    Holder* last_vacant = nullptr;
  };
  Class& class_of(const Holder& slab) { return classes_.find(slab.slot_bytes)->second; }
  const Class* find_class(uint32_t slot_bytes) const;
  void link(Holder& slab);
  void unlink(Holder& slab);

  const uint32_t count_max_;
  std::vector<std::unique_ptr<Holder>> holders_;
  size_t looked_ = 0;             // where any() goes on
  std::vector<uint32_t> unused_;  // numbers below holders_.size(); it has room for all
  size_t size_ = 0;
  uint64_t bytes_ = 0;
  std::unordered_map<uint32_t, Class> classes_;
};

}  // namespace pgalloc::cache
