// Purpose: how the size of a gap is measured, and what a search for a gap asks for.
//
// Thread safety: pure functions and values.
//
// Two measures are cached in the tree: the plain length, and the length that is left when the start
// is rounded up to Traits::kGapAlignment. A search for huge pages uses the second, so that millions
// of bytes of misaligned gaps are passed over without being looked at.
#pragma once

#include <cstdint>
#include <limits>

#include "base/units.h"

namespace pgalloc::segment {

inline constexpr unsigned kPlainMeasure = 0;
inline constexpr unsigned kAlignedMeasure = 1;
inline constexpr unsigned kGapMeasures = 2;

// The bytes left of `gap` when its start is rounded up to `alignment`, a power of two.
constexpr uint64_t aligned_length(FileRange gap, uint64_t alignment) {
  const uint64_t padding = (0 - gap.start) & (alignment - 1);
  const uint64_t length = gap.length();
  return length > padding ? length - padding : 0;
}

template <class Traits>
constexpr uint64_t gap_size(FileRange gap, unsigned measure) {
  if (measure == kPlainMeasure) return gap.length();
  return aligned_length(gap, Traits::kGapAlignment);
}

// A search for `length` bytes (not 0) that start at a multiple of `alignment`.
struct GapRequest {
  uint64_t length;
  uint64_t alignment;

  bool fits(FileRange gap) const { return aligned_length(gap, alignment) >= length; }

  // The strictest cached measure that no fitting gap falls short of. It is exact when the alignment
  // is Traits::kGapAlignment, or when all keys are multiples of a smaller alignment.
  template <class Traits>
  unsigned measure() const {
    return alignment >= Traits::kGapAlignment ? kAlignedMeasure : kPlainMeasure;
  }
};

}  // namespace pgalloc::segment
