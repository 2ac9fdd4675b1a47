// Purpose: which pages their owners can do without: how many handles on each page are unpinned, and
// when its contents were last discarded.
//
// Thread safety: externally synchronised (the file's lock).
//
// Invariants
//   1. Every recorded page has at least one unpinned handle, and no more of them than references
//      (PageStates::verify()).
//   2. A page's discard is remembered as long as one of its handles is unpinned: a handle that was
//      unpinned before it learns of it, one that is unpinned later does not.
#pragma once

#include <cstdint>

#include "base/units.h"
#include "segment/segment_set.h"

namespace pgalloc {

struct UnpinnedTraits {
  struct Value {
    uint32_t handles = 0;
    uint64_t discarded_at = 0;  // 0: never
    friend bool operator==(const Value&, const Value&) = default;
  };
  static constexpr bool kTrackGaps = false;
  static constexpr uint64_t kGapAlignment = kUsualHugePageSize;
  static bool merge(Value& left, const Value& right) { return left == right; }
  static Value split(Value& value, FileRange, uint64_t) { return value; }
};

class UnpinnedPages {
 public:
  using Set = segment::SegmentSet<UnpinnedTraits>;

  bool empty() const { return set_.empty(); }
  const Set& set() const { return set_; }
  // Discards are numbered. The number of the last one.
  uint64_t now() const { return now_; }

  // One more unpinned handle on each page of `range`.
  void add(FileRange range);
  // One less. True if no page of `range` was discarded after `since`.
  bool remove(FileRange range, uint64_t since);
  // True if at least `handles` of each page of `range` are unpinned.
  bool has(FileRange range, uint32_t handles) const;
  // The next discard begins: marked pages get its number.
  void tick() { ++now_; }
  void mark_discarded(FileRange range);
  // The pages of `range` have no references any more. After reserve(), so many of these calls cannot fail.
  void forget(FileRange range) { set_.remove_range(range); }
  void reserve(size_t calls) { set_.reserve(2 * calls); }
  void clear() { set_.clear(); }

 private:
  Set set_;
  uint64_t now_ = 0;
};

}  // namespace pgalloc
