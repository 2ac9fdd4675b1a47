// Purpose: a set of ranges that carries nothing but membership.
//
// Thread safety: externally synchronised.
#pragma once

#include "base/units.h"
#include "segment/segment_set.h"

namespace pgalloc {

struct PlainTraits {
  struct Value {};
  static constexpr bool kTrackGaps = false;
  static constexpr uint64_t kGapAlignment = kUsualHugePageSize;
  static bool merge(Value&, const Value&) { return true; }
  static Value split(Value&, FileRange, uint64_t) { return {}; }
};

using RangeSet = segment::SegmentSet<PlainTraits>;

}  // namespace pgalloc
