// Purpose: the search inside one node: how many of its sorted keys are not above a given key.
//
// Thread safety: pure functions.
//
// A node's keys fit a few cache lines, so comparing without branches beats a binary search: no
// misprediction, and all loads of a step are independent. Two steps of 3 and 8 comparisons replace
// one of 32. Nodes fill unused slots with kNoKey, so the loops need no bounds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "base/units.h"

namespace pgalloc::segment {

inline constexpr unsigned kNodeCapacity = 32;

// What the key of an unused slot reads as. No segment starts here: its end would have to be larger.
inline constexpr uint64_t kNoKey = std::numeric_limits<uint64_t>::max();

inline uint64_t key_of(uint64_t key) { return key; }
inline uint64_t key_of(const FileRange& range) { return range.start; }

// How many of the first `count` of kNodeCapacity entries, sorted by key, have a key <= `key`.
// REQUIRES: the keys of all other entries are kNoKey.
template <class Entry>
inline unsigned count_not_above(const Entry* entries, unsigned count, uint64_t key) {
  constexpr unsigned kStep = 8;
  unsigned found = 0;
#pragma GCC unroll 8
  for (unsigned i = kStep - 1; i < kNodeCapacity - 1; i += kStep) {
    found += key_of(entries[i]) <= key ? kStep : 0;
  }
  const Entry* step = entries + found;
#pragma GCC unroll 8
  for (unsigned i = 0; i < kStep; ++i) found += key_of(step[i]) <= key;
  return std::min(found, count);  // differs only for key == kNoKey
}

}  // namespace pgalloc::segment
