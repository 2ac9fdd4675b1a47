// Purpose: references that a restored file has because the image says so, and that no owner has
// taken over yet (row J7).
//
// Thread safety: externally synchronised (MemoryFile::mu_).
//
// Invariant: no page has more unadopted references than references (PageStates::verify()).
#pragma once

#include <cstdint>

#include "base/units.h"
#include "segment/segment_set.h"

namespace pgalloc {

struct CountTraits {
  using Value = uint32_t;
  static constexpr bool kTrackGaps = false;
  static constexpr uint64_t kGapAlignment = kHugePageSize;
  static bool merge(Value& left, const Value& right) { return left == right; }
  static Value split(Value& value, FileRange, uint64_t) { return value; }
};

class Unadopted {
 public:
  using Set = segment::SegmentSet<CountTraits>;

  bool empty() const { return set_.empty(); }
  const Set& set() const { return set_; }
  // REQUIRES: nothing in `range` is recorded yet; count > 0.
  void record(FileRange range, uint32_t count) { set_.insert(range, count); }
  // One reference on every page of `range` has found its owner. False, without effect, unless each
  // of them has one left.
  bool adopt(FileRange range);
  // The pages of `range` have `refs` references left in all: no more can be unadopted.
  void limit(FileRange range, uint32_t refs);
  void clear() { set_.clear(); }

 private:
  void drop_empty(FileRange range);

  Set set_;
};

}  // namespace pgalloc
