// Purpose: the layout of the B+tree's nodes, and positions in it.
//
// Thread safety: externally synchronised.
//
// Segments live in leaves only. Inner nodes hold, per child, what a search needs to know about the
// child before touching it: its first key and the largest gap below it.
//
// Invariants
//   1. A node holds 1 to kNodeCapacity entries; the keys of unused slots are kNoKey.
//   2. keys[i] of an inner node is the start of the first segment below children[i].
//   3. Leaves are linked in key order; all leaves have level 0 and the same depth.
//   4. Gap i of a leaf is the one before its segment i; gap 0 reaches back to the end of the
//      previous leaf's last segment, or to 0.
//   5. largest_gap[m][i] is the size, in measure m (gap_measure.h), of the largest gap below
//      children[i]. The gap after the very last segment belongs to no leaf and is cached nowhere.
//   6. runner_up[m] of a node is not below any of its gaps (in an inner node: those of its children)
//      but one of the largest. It may be too high: it spares measuring, but proves nothing else.
#pragma once

#include <cstdint>
#include <type_traits>

#include "base/units.h"
#include "segment/gap_measure.h"
#include "segment/key_search.h"

namespace pgalloc::segment {

template <class Traits>
struct Inner;

// What a node that tracks gaps knows besides what its parent holds about it.
template <bool kTracked>
struct GapBounds {
  uint64_t runner_up[kGapMeasures] = {};
};
template <>
struct GapBounds<false> {};

template <class Traits>
struct Node : GapBounds<Traits::kTrackGaps> {
  Inner<Traits>* parent = nullptr;
  uint16_t level = 0;  // 0 for a leaf
  uint16_t count = 0;
  // Where the parent holds this node, if nothing moved there since. Exact indices would make every
  // shift in a parent touch all the children that moved, and their cache lines are cold.
  mutable uint16_t slot_hint = 0;
};

// An array of values that takes no space when the values have none.
template <class Value, bool kIsEmpty = std::is_empty_v<Value>>
struct ValueArray {
  Value items[kNodeCapacity];
  Value& operator[](unsigned index) { return items[index]; }
};
template <class Value>
struct ValueArray<Value, true> {
  [[no_unique_address]] Value item;
  Value& operator[](unsigned) { return item; }
};

template <class Traits>
struct Leaf : Node<Traits> {
  using Value = typename Traits::Value;

  Leaf() {
    for (FileRange& range : ranges) range = {kNoKey, kNoKey};
  }

  uint64_t first_key() const { return ranges[0].start; }
  uint64_t last_end() const { return ranges[this->count - 1].end; }
  // The number of segments that start at or before `key`.
  unsigned count_not_above(uint64_t key) const {
    return segment::count_not_above(ranges, this->count, key);
  }

  Leaf* prev = nullptr;
  Leaf* next = nullptr;
  uint32_t settle_at = 0;  // look after this leaf when it has shrunk to so many segments
  FileRange ranges[kNodeCapacity];
  [[no_unique_address]] ValueArray<Value> values;
};

template <bool kTracked>
struct GapArrays {
  uint64_t largest_gap[kGapMeasures][kNodeCapacity];
};
template <>
struct GapArrays<false> {};

template <class Traits>
struct Inner : Node<Traits>, GapArrays<Traits::kTrackGaps> {
  Inner() {
    for (uint64_t& key : keys) key = kNoKey;
  }

  uint64_t first_key() const { return keys[0]; }
  // The child to descend into for `key`: the last one that starts at or before it, else the first.
  Node<Traits>* child_for(uint64_t key) const {
    const unsigned below = segment::count_not_above(keys, this->count, key);
    return children[below - (below != 0)];
  }

  uint64_t keys[kNodeCapacity];
  Node<Traits>* children[kNodeCapacity];
};

// A place in the tree: segment `index` of `leaf`, or as a gap, the one before it. The gap after
// the last segment is {last leaf, its count}, or {nullptr, 0} in an empty tree.
template <class Traits>
struct Position {
  Leaf<Traits>* leaf = nullptr;
  uint32_t index = 0;

  bool is_segment() const { return leaf != nullptr && index < leaf->count; }
  // REQUIRES (all below): is_segment().
  FileRange& range() const { return leaf->ranges[index]; }
  typename Traits::Value& value() const { return leaf->values[index]; }

  // The segment before this place, or {} if there is none.
  Position prev_segment() const {
    if (index > 0) return {leaf, index - 1};
    if (leaf == nullptr || leaf->prev == nullptr) return {};
    return {leaf->prev, leaf->prev->count - 1u};
  }
  // The same place, named by the segment that follows it if there is one.
  Position canonical() const {
    if (leaf != nullptr && index == leaf->count && leaf->next != nullptr) return {leaf->next, 0};
    return *this;
  }
  Position next_place() const { return Position{leaf, index + 1}.canonical(); }

  // The gap before this place. REQUIRES: canonical.
  FileRange gap() const {
    const Position before = prev_segment();
    return {before.leaf != nullptr ? before.range().end : 0, is_segment() ? range().start : kNoKey};
  }

  friend bool operator==(const Position&, const Position&) = default;
};

}  // namespace pgalloc::segment
