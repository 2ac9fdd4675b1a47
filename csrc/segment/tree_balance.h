// Purpose: the third part of tree.h: splitting full nodes, merging sparse ones, and shifting the
// slots of a node. Nothing here runs more often than once per several edits, shifting apart.
//
// Policy
//   - A node splits in the middle, or where a run of edits is going on: filling or checkering a
//     file in order leaves nodes full, not half full.
//   - A leaf that has shrunk to half its size is merged with a neighbour if both fit kMergedMax
//     slots, else it tops up the one before it to kMergedMax. Removing in order so leaves full nodes
//     behind as well. The slots kept free prevent a merge from being followed by a split at once.
#pragma once

#include <algorithm>

#include "segment/tree.h"

namespace pgalloc::segment {

inline constexpr unsigned kMergedMax = kNodeCapacity - kNodeCapacity / 8;
inline constexpr unsigned kSparseInner = kNodeCapacity / 4;

// --- Slots of one node ---------------------------------------------------------------------------

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
  if (slot < parent->count && parent->children[slot] == node) [[likely]] return slot;
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

// --- Splitting -----------------------------------------------------------------------------------

// The nodes that splitting `leaf` takes, if `splits` leaves of the same ancestors are to be split.
template <class Traits>
typename Tree<Traits>::Demand Tree<Traits>::demand_of(const LeafNode* leaf, unsigned splits) const {
  if (leaf == nullptr) return {1, 0};
  Demand demand{1, 0};
  const InnerNode* inner = leaf->parent;
  for (; inner != nullptr && inner->count + splits > kNodeCapacity; inner = inner->parent) {
    ++demand.inners;
  }
  if (inner == nullptr) ++demand.inners;  // a new root
  return demand;
}

template <class Traits>
void Tree<Traits>::ensure(Demand demand) {
  leaves_.ensure(demand.leaves);
  inners_.ensure(demand.inners);
}

// Splits at.leaf (or makes the first leaf) so that `slots` slots can be opened at the result.
template <class Traits>
Position<Traits> Tree<Traits>::make_room(Place at, unsigned slots) {
  ensure(demand_of(at.leaf, 1));
  LeafNode* fresh = leaves_.take();
  if (at.leaf == nullptr) {
    root_ = first_ = last_ = fresh;
    return {fresh, 0};
  }
  LeafNode* leaf = at.leaf;
  const unsigned kept = split_point(at, slots);
  copy_segments(leaf, kept, leaf->count - kept, fresh);
  shift_down(leaf, kept, leaf->count - kept);

  fresh->prev = leaf;
  fresh->next = leaf->next;
  (leaf->next != nullptr ? leaf->next->prev : last_) = fresh;
  leaf->next = fresh;
  leaf->settle_at = leaf->count / 2;
  fresh->settle_at = fresh->count / 2;

  insert_child_after(leaf, fresh, fresh->first_key());
  refresh_path(leaf->parent);
  return at.index <= kept ? at : Place{fresh, at.index - kept};
}

// How many segments of at.leaf stay. Both halves get at least one, the segment before `at` stays
// together with the new slots, and these fit.
template <class Traits>
unsigned Tree<Traits>::split_point(Place at, unsigned slots) const {
  const unsigned count = at.leaf->count;
  const bool in_run = at.index == count || (at.leaf == run_.leaf && (at.index == run_.begin ||
                                                                     at.index == run_.end));
  if (!in_run) return count / 2;
  const unsigned kept = at.index + slots <= kNodeCapacity ? at.index : at.index - 1;
  return std::clamp(kept, 1u, count - 1);
}

// Makes `fresh`, whose first key is `key`, the next sibling of `node`. Measures both, but leaves
// the largest gaps of the ancestors to refresh_path().
template <class Traits>
void Tree<Traits>::insert_child_after(AnyNode* node, AnyNode* fresh, uint64_t key) {
  if (node->parent == nullptr) grow_root();
  InnerNode* parent = node->parent;
  unsigned slot = slot_of(node) + 1;
  if (parent->count == kNodeCapacity) {
    InnerNode* right = split_inner(parent, slot);
    if (slot > parent->count) {  // `node` has moved, too
      slot -= parent->count;
      parent = right;
    }
  }
  const auto open = [&](auto* array) {
    std::copy_backward(array + slot, array + parent->count, array + parent->count + 1);
  };
  open(parent->keys);
  open(parent->children);
  parent->keys[slot] = key;
  parent->children[slot] = fresh;
  fresh->parent = parent;
  fresh->slot_hint = static_cast<uint16_t>(slot);
  if constexpr (Traits::kTrackGaps) {
    for (unsigned measure = 0; measure < kGapMeasures; ++measure) {
      open(parent->largest_gap[measure]);
      for (AnyNode* child : {node, fresh}) {
        const TopTwo top = measure_gaps(child, measure);
        parent->largest_gap[measure][child == node ? slot - 1 : slot] = top.largest;
        child->runner_up[measure] = top.runner_up;
      }
    }
  }
  ++parent->count;
}

// Splits a full inner node before a child is inserted at `slot`; returns the right half.
template <class Traits>
Inner<Traits>* Tree<Traits>::split_inner(InnerNode* inner, unsigned slot) {
  const unsigned count = inner->count;
  const unsigned kept = slot == count ? count - 1 : count / 2;
  InnerNode* right = inners_.take();
  right->level = inner->level;
  move_children(inner, kept, right);
  insert_child_after(inner, right, right->first_key());
  return right;
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

template <class Traits>
void Tree<Traits>::grow_root() {
  InnerNode* root = inners_.take();
  root->level = root_->level + 1;
  root->count = 1;
  root->keys[0] = root_->level > 0 ? as_inner(root_)->first_key() : as_leaf(root_)->first_key();
  root->children[0] = root_;
  root_->parent = root;
  root_->slot_hint = 0;
  if constexpr (Traits::kTrackGaps) {
    for (unsigned measure = 0; measure < kGapMeasures; ++measure) {
      root->largest_gap[measure][0] = root_largest_gap_[measure];
    }
  }
  root_ = root;
}

// Measures `inner` and all its ancestors again.
template <class Traits>
void Tree<Traits>::refresh_path(InnerNode* inner) {
  if constexpr (Traits::kTrackGaps) {
    for (; inner != nullptr; inner = inner->parent) {
      for (unsigned measure = 0; measure < kGapMeasures; ++measure) {
        const TopTwo top = measure_gaps(inner, measure);
        largest_gap(inner, measure) = top.largest;
        inner->runner_up[measure] = top.runner_up;
      }
    }
  }
}

// --- Merging -------------------------------------------------------------------------------------

template <class Traits>
Position<Traits> Tree<Traits>::rebalance(Place at) {
  LeafNode* leaf = at.leaf;
  LeafNode* prev = leaf->prev;
  LeafNode* next = leaf->next;
  const unsigned count = leaf->count;
  if (count == 0) {
    remove_leaf(leaf);
    if (next != nullptr) return {next, 0};
    return end_place();
  }
  leaf->settle_at = count / 2;
  if (prev != nullptr && prev->count + count <= kMergedMax) {
    const unsigned base = prev->count;
    absorb_next(prev);
    finger_ = prev;
    return {prev, base + at.index};
  }
  if (next != nullptr && count + next->count <= kMergedMax) {
    absorb_next(leaf);
    return at;
  }
  if (prev != nullptr && prev->count < kMergedMax) {
    const unsigned base = prev->count;
    const unsigned given = kMergedMax - base;
    give_to_prev(leaf, given);
    if (at.index < given) return {prev, base + at.index};
    return {leaf, at.index - given};
  }
  return at;
}

// Moves all segments of the next leaf to `leaf`.
template <class Traits>
void Tree<Traits>::absorb_next(LeafNode* leaf) {
  LeafNode* next = leaf->next;
  copy_segments(next, 0, next->count, leaf);
  shift_down(next, 0, next->count);
  remove_leaf(next);
  gaps_changed(leaf);
  leaf->settle_at = leaf->count / 2;
}

// Moves the first `slots` segments of `leaf`, but not all, to the leaf before it.
template <class Traits>
void Tree<Traits>::give_to_prev(LeafNode* leaf, unsigned slots) {
  copy_segments(leaf, 0, slots, leaf->prev);
  shift_down(leaf, 0, slots);
  first_key_changed(leaf);
  gaps_changed(leaf->prev);
  gaps_changed(leaf);
  expect_settling(leaf->prev);
  leaf->settle_at = leaf->count / 2;
}

// Takes an empty leaf out of the tree.
template <class Traits>
void Tree<Traits>::remove_leaf(LeafNode* leaf) {
  (leaf->prev != nullptr ? leaf->prev->next : first_) = leaf->next;
  (leaf->next != nullptr ? leaf->next->prev : last_) = leaf->prev;
  if (leaf->parent != nullptr) {
    remove_child(leaf);
  } else {
    root_ = nullptr;
    std::fill_n(root_largest_gap_, kGapMeasures, 0);
  }
  if (finger_ == leaf) finger_ = nullptr;
  if (run_.leaf == leaf) run_ = {};
  leaf->parent = nullptr;
  leaf->prev = nullptr;
  leaf->settle_at = 0;
  leaves_.put(leaf);
}

// Takes `child` out of its parent, and keeps the ancestors in shape.
template <class Traits>
void Tree<Traits>::remove_child(AnyNode* child) {
  InnerNode* parent = child->parent;
  const unsigned slot = slot_of(child);
  const auto close = [&](auto* array) {
    std::copy(array + slot + 1, array + parent->count, array + slot);
  };
  close(parent->keys);
  close(parent->children);
  if constexpr (Traits::kTrackGaps) {
    for (unsigned measure = 0; measure < kGapMeasures; ++measure) {
      close(parent->largest_gap[measure]);
    }
  }
  parent->keys[--parent->count] = kNoKey;
  if (parent->count == 0) {
    remove_child(parent);
    inners_.put(parent);
    return;
  }
  if (slot == 0) set_first_key(parent, parent->first_key());
  refresh_path(parent);
  merge_sparse(parent);
}

template <class Traits>
void Tree<Traits>::merge_sparse(InnerNode* inner) {
  InnerNode* parent = inner->parent;
  if (parent == nullptr) {
    shrink_root();
    return;
  }
  if (inner->count > kSparseInner) return;
  const unsigned slot = slot_of(inner);
  const auto sibling = [&](unsigned index) { return as_inner(parent->children[index]); };
  if (slot > 0 && sibling(slot - 1)->count + inner->count <= kMergedMax) {
    absorb_sibling(sibling(slot - 1), inner);
  } else if (slot + 1 < parent->count && inner->count + sibling(slot + 1)->count <= kMergedMax) {
    absorb_sibling(inner, sibling(slot + 1));
  }
}

template <class Traits>
void Tree<Traits>::absorb_sibling(InnerNode* left, InnerNode* right) {
  move_children(right, 0, left);
  gaps_changed(left);
  remove_child(right);
  inners_.put(right);
}

// A root with a single child is none.
template <class Traits>
void Tree<Traits>::shrink_root() {
  while (root_->level > 0 && root_->count == 1) {
    InnerNode* old = as_inner(root_);
    root_ = old->children[0];
    root_->parent = nullptr;
    old->keys[0] = kNoKey;
    old->count = 0;
    inners_.put(old);
  }
}

// --- The whole tree ------------------------------------------------------------------------------

template <class Traits>
void Tree<Traits>::clear() noexcept {
  // Emptied leaf by leaf from the end, the tree stays valid without touching any maximum twice.
  for (LeafNode* leaf = last_; leaf != nullptr; leaf = last_) {
    size_ -= leaf->count;
    shift_down(leaf, 0, leaf->count);
    remove_leaf(leaf);
  }
}

template <class Traits>
void Tree<Traits>::swap(Tree& other) noexcept {
  std::swap(root_, other.root_);
  std::swap(size_, other.size_);
  std::swap(first_, other.first_);
  std::swap(last_, other.last_);
  std::swap(finger_, other.finger_);
  std::swap(run_, other.run_);
  std::swap(root_largest_gap_, other.root_largest_gap_);
  leaves_.swap(other.leaves_);
  inners_.swap(other.inners_);
}

}  // namespace pgalloc::segment
