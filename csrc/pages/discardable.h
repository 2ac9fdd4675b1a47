// Purpose: an unpinned allocation as the queue it waits in knows it, and lists of such.
//
// Thread safety: externally synchronised (the file's lock).
//
// Invariants
//   1. An entry is in at most one list; its `list` says in which. It belongs to the handle of the
//      allocation, which takes it out before it ends.
//   2. bytes() is the sum of the lengths of a list's entries, size() their number.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "base/units.h"

namespace pgalloc {

class DiscardQueue;
class DiscardList;

struct Discardable {
  FileRange range;
  DiscardQueue* queue = nullptr;  // where it waits when it is unpinned; the file's own if null
  uint64_t id = 0;                // what the queue's owner calls it
  uint64_t hash = 0;              // by which it is known when it comes back
  uint64_t since = 0;             // the number of the last discard before it was unpinned
  uint64_t order = 0;             // when it was unpinned, compared with others of the process
  bool unpinned = false;          // counted as such in UnpinnedPages
  bool discarded = false;         // the contents were; the handle resets it
  bool held = false;              // stays in its place in the queue, but must not go now
  uint8_t visits = 0;             // since it came, or since the policy last looked
  DiscardList* list = nullptr;
  Discardable* previous = nullptr;
  Discardable* next = nullptr;
};

class DiscardList {
 public:
  DiscardList() = default;
  ~DiscardList() { clear(); }
  DiscardList(const DiscardList&) = delete;
  DiscardList& operator=(const DiscardList&) = delete;

  bool empty() const { return first_ == nullptr; }
  size_t size() const { return size_; }
  uint64_t bytes() const { return bytes_; }
  Discardable* first() const { return first_; }
  // Whether an entry is not held: takes as long as those before it are many.
  bool has_free() const {
    const Discardable* entry = first_;
    while (entry != nullptr && entry->held) entry = entry->next;
    return entry != nullptr;
  }

  // REQUIRES: `entry` is in no list.
  void push_back(Discardable& entry) {
    PGALLOC_CHECK(entry.list == nullptr);
    entry.list = this;
    entry.previous = last_;
    entry.next = nullptr;
    (last_ == nullptr ? first_ : last_->next) = &entry;
    last_ = &entry;
    ++size_;
    bytes_ += entry.range.length();
  }
  // REQUIRES: `entry` is in this list.
  void remove(Discardable& entry) {
    PGALLOC_CHECK(entry.list == this);
    (entry.previous == nullptr ? first_ : entry.previous->next) = entry.next;
    (entry.next == nullptr ? last_ : entry.next->previous) = entry.previous;
    entry.list = nullptr;
    --size_;
    bytes_ -= entry.range.length();
  }
  void clear() {
    while (first_ != nullptr) remove(*first_);
  }

 private:
  Discardable* first_ = nullptr;
  Discardable* last_ = nullptr;
  size_t size_ = 0;
  uint64_t bytes_ = 0;
};

}  // namespace pgalloc
