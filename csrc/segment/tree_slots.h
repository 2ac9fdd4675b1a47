// Purpose: the part of tree.h that moves entries within a node and from node to node. It keeps
// invariant 1 of node.h; the others are up to the callers.
//
// Thread safety: see tree.h.
#pragma once

#include <algorithm>

#include "segment/tree.h"

namespace pgalloc::segment {

template <class Traits>
inline void Tree<Traits>::shift_up(LeafNode* leaf, unsigned index, unsigned slots) {
  FileRange* ranges = leaf->ranges;
  std::copy_backward(ranges + index, ranges + leaf->count, ranges + leaf->count + slots);
  if constexpr (!std::is_empty_v<Value>) {
    Value* values = leaf->values.items;
    std::copy_backward(values + index, values + leaf->count, values + leaf->count + slots);
  }
  leaf->count += slots;
}

template <class Traits>
inline void Tree<Traits>::shift_down(LeafNode* leaf, unsigned index, unsigned slots) {
  FileRange* ranges = leaf->ranges;
  std::copy(ranges + index + slots, ranges + leaf->count, ranges + index);
  if constexpr (!std::is_empty_v<Value>) {
    Value* values = leaf->values.items;
    std::copy(values + index + slots, values + leaf->count, values + index);
  }
  leaf->count -= slots;
  for (unsigned i = leaf->count; i < leaf->count + slots; ++i) ranges[i].start = kNoKey;
}

// Appends copies of `slots` segments of `from` to `to`.
template <class Traits>
void Tree<Traits>::copy_segments(const LeafNode* from, unsigned index, unsigned slots,
                                 LeafNode* to) {
  std::copy_n(from->ranges + index, slots, to->ranges + to->count);
  if constexpr (!std::is_empty_v<Value>) {
    std::copy_n(from->values.items + index, slots, to->values.items + to->count);
  }
  to->count += slots;
}

template <class Traits>
inline unsigned Tree<Traits>::slot_of(const AnyNode* node) {
  const InnerNode* parent = node->parent;
  unsigned slot = node->slot_hint;
  if (slot < parent->count && parent->children[slot] == node) [[likely]]
    return slot;
  for (slot = 0; parent->children[slot] != node; ++slot) {
  }
  node->slot_hint = static_cast<uint16_t>(slot);
  return slot;
}

template <class Traits>
inline void Tree<Traits>::set_first_key(AnyNode* node, uint64_t key) {
  for (; node->parent != nullptr; node = node->parent) {
    const unsigned slot = slot_of(node);
    node->parent->keys[slot] = key;
    if (slot > 0) return;
  }
}

// Appends the children of `from` from slot `index` on to those of `to`.
template <class Traits>
void Tree<Traits>::move_children(InnerNode* from, unsigned index, InnerNode* to) {
  const unsigned moved = from->count - index;
  const unsigned base = to->count;
  std::copy_n(from->keys + index, moved, to->keys + base);
  std::copy_n(from->children + index, moved, to->children + base);
  if constexpr (Traits::kTrackGaps) {
    for (unsigned measure = 0; measure < kGapMeasures; ++measure) {
      std::copy_n(from->largest_gap[measure] + index, moved, to->largest_gap[measure] + base);
    }
  }
  for (unsigned i = base; i < base + moved; ++i) {
    to->children[i]->parent = to;
    to->children[i]->slot_hint = static_cast<uint16_t>(i);
  }
  std::fill_n(from->keys + index, moved, kNoKey);
  from->count -= moved;
  to->count += moved;
}

}  // namespace pgalloc::segment
