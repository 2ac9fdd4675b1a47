// Purpose: cuts work on many segments into pieces.
//
// Thread safety: see segment_set.h.
#pragma once

#include <cstddef>

#include "segment/segment_set.h"

namespace pgalloc::segment {

// Cuts `*range` off where `set` has more than `count_max` segments in it: how many are left.
// REQUIRES: count_max > 0.
template <class Set>
size_t cut(const Set& set, size_t count_max, FileRange* range) {
  size_t count = 0;
  set.visit_range(*range, [&](FileRange part, const auto&) {
    if (count < count_max) return ++count > 0;
    range->end = part.start;
    return false;
  });
  return count;
}

}  // namespace pgalloc::segment
