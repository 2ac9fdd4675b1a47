// Purpose: the part of tree.h that makes room in full nodes.
//
// Thread safety: see tree.h.
//
// A node splits in the middle, or where a run of edits is going on: filling or checkering a file in
// order leaves nodes full, not half full. All nodes that a split takes are fetched before it
// begins.
#pragma once

#include <algorithm>

#include "segment/tree.h"

namespace pgalloc::segment {

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
  const bool in_run = at.index == count ||
                      (at.leaf == run_.leaf && (at.index == run_.begin || at.index == run_.end));
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

}  // namespace pgalloc::segment
