// Purpose: the part of tree.h that takes sparse and empty nodes out again.
//
// Thread safety: see tree.h.
//
// A leaf that has shrunk to half its size is merged with a neighbour if both fit kMergedMax slots,
// else it tops up the one before it to kMergedMax: removing in order, too, leaves full nodes
// behind. The slots kept free prevent a merge from being followed by a split at once.
#pragma once

#include <algorithm>

#include "segment/tree.h"

namespace pgalloc::segment {

inline constexpr unsigned kMergedMax = kNodeCapacity - kNodeCapacity / 8;
inline constexpr unsigned kSparseInner = kNodeCapacity / 4;

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
