// Purpose: how often each page is held, page by page: what owners have not adopted yet,
// what a peer leases, what a peer's handles hold.
//
// Thread safety: externally synchronised.
//
// Invariant: at rest, every recorded page has a count of at least 1.
//
// Errors: a std::bad_alloc leaves everything as it was.
#pragma once

#include <cstdint>
#include <vector>

#include "base/units.h"
#include "segment/segment_set.h"

namespace pgalloc {

struct CountTraits {
  using Value = uint32_t;
  static constexpr bool kTrackGaps = false;
  static constexpr uint64_t kGapAlignment = kUsualHugePageSize;
  static bool merge(Value& left, const Value& right) { return left == right; }
  static Value split(Value& value, FileRange, uint64_t) { return value; }
};

class CountedPages {
 public:
  using Set = segment::SegmentSet<CountTraits>;

  bool empty() const { return set_.empty(); }
  const Set& set() const { return set_; }
  // Whether every page of `range` is held.
  bool has(FileRange range) const { return set_.span_of(range) == range.length(); }
  // Whether every page of `range` is held exactly once.
  bool is_unique(FileRange range) const;

  // One more of each page. False, without effect, if a count would overflow.
  bool add(FileRange range);
  // One less of each page: the pages that are not held any more, in order. False, without effect,
  // unless each of them is held.
  bool remove(FileRange range, std::vector<FileRange>* gone);
  // The same for a caller that knows how often. REQUIRES: nothing in `range` is held; count > 0.
  void record(FileRange range, uint32_t count) { set_.insert(range, count); }
  // Whether a page of `range` is held more than `count` times.
  bool exceeds(FileRange range, uint32_t count) const {
    if (set_.empty()) return false;
    return !set_.visit_range(range, [&](FileRange, const uint32_t& held) { return held <= count; });
  }
  // No page of `range` is held more than `count` times from here on. After reserve(), so many of these calls cannot fail.
  void limit(FileRange range, uint32_t count);
  void reserve(size_t calls) { set_.reserve(4 * calls); }
  void clear() { set_.clear(); }
  void swap(CountedPages& other) noexcept { set_.swap(other.set_); }

 private:
  template <class Change>
  void take_away(FileRange range, Change change, std::vector<FileRange>* gone);
  void drop_empty(FileRange range);

  Set set_;
};

}  // namespace pgalloc
