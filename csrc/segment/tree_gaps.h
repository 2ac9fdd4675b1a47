// Purpose: the part of tree.h that keeps the largest gaps right, and searches by them.
//
// Thread safety: see tree.h.
//
// A gap that grew can only raise maxima: constant time per level. A gap that shrank matters only if
// it was a largest one. Even then it usually stays the largest, since allocations eat up one big
// gap piece by piece; the runner-up of its node tells. Else the node is measured again, which stops
// as soon as another gap of the old size turns up: in a set full of equal holes, at once.
#pragma once

#include "segment/tree.h"

namespace pgalloc::segment {

template <class Traits>
inline uint64_t& Tree<Traits>::largest_gap(const AnyNode* node, unsigned measure) const {
  InnerNode* parent = node->parent;
  if (parent == nullptr) return root_largest_gap_[measure];
  return parent->largest_gap[measure][slot_of(node)];
}

// The two largest of the gaps of `node`, each as one of its own entries. Stops at the first that
// reaches `limit`.
template <class Traits>
typename Tree<Traits>::TopTwo Tree<Traits>::measure_gaps(const AnyNode* node, unsigned measure,
                                                         uint64_t limit) {
  TopTwo top;
  if (node->level > 0) {
    const uint64_t* sizes = as_inner(node)->largest_gap[measure];
    for (unsigned i = 0; i < node->count && top.largest < limit; ++i) top.add(sizes[i]);
    return top;
  }
  const LeafNode* leaf = as_leaf(node);
  uint64_t end_before = leaf->prev != nullptr ? leaf->prev->last_end() : 0;
  for (unsigned i = 0; i < leaf->count && top.largest < limit; ++i) {
    top.add(gap_size<Traits>({end_before, leaf->ranges[i].start}, measure));
    end_before = leaf->ranges[i].end;
  }
  return top;
}

// An entry of `node` is new, or larger than before.
template <class Traits>
inline void Tree<Traits>::entry_grew(AnyNode* node, unsigned measure, uint64_t size) {
  for (; node != nullptr; node = node->parent) {
    uint64_t& largest = largest_gap(node, measure);
    uint64_t& runner_up = node->runner_up[measure];
    if (size <= largest) {
      runner_up = std::max(runner_up, size);
      return;
    }
    runner_up = largest;
    largest = size;
  }
}

// An entry of `node` is smaller than `before` now, or gone (0).
template <class Traits>
inline void Tree<Traits>::entry_shrank(AnyNode* node, unsigned measure, uint64_t before,
                                       uint64_t size) {
  for (; node != nullptr && size != before; node = node->parent) {
    uint64_t& largest = largest_gap(node, measure);
    if (before != largest) return;
    if (size < node->runner_up[measure]) {
      const TopTwo top = measure_gaps(node, measure, before);
      if (top.largest == before) return;
      node->runner_up[measure] = top.runner_up;
      size = top.largest;
    }
    largest = size;
  }
}

template <class Traits>
inline void Tree<Traits>::gap_grew(LeafNode* leaf, FileRange gap) {
  if constexpr (Traits::kTrackGaps) {
    if (gap.empty()) return;
    for (unsigned measure = 0; measure < kGapMeasures; ++measure) {
      entry_grew(leaf, measure, gap_size<Traits>(gap, measure));
    }
  }
}

template <class Traits>
inline void Tree<Traits>::gap_shrank(LeafNode* leaf, FileRange before, FileRange gap) {
  if constexpr (Traits::kTrackGaps) {
    if constexpr (requires { Traits::kPlantedBug; }) return;  // the stress driver must notice
    for (unsigned measure = 0; measure < kGapMeasures; ++measure) {
      entry_shrank(leaf, measure, gap_size<Traits>(before, measure),
                   gap_size<Traits>(gap, measure));
    }
  }
}

template <class Traits>
void Tree<Traits>::gaps_changed(AnyNode* node) {
  if constexpr (Traits::kTrackGaps) {
    for (unsigned measure = 0; measure < kGapMeasures; ++measure) {
      const TopTwo top = measure_gaps(node, measure);
      const uint64_t before = std::exchange(largest_gap(node, measure), top.largest);
      node->runner_up[measure] = top.runner_up;
      if (top.largest > before) {
        entry_grew(node->parent, measure, top.largest);
      } else {
        entry_shrank(node->parent, measure, before, top.largest);
      }
    }
  }
}

// Among the gaps of `leaf` from `from` on (upwards), or before `from` (downwards).
template <class Traits>
template <typename Tree<Traits>::Direction kDirection>
inline Position<Traits> Tree<Traits>::search_leaf(LeafNode* leaf, unsigned from,
                                                  GapRequest request) {
  if constexpr (kDirection == Direction::kUp) {
    for (unsigned i = from; i < leaf->count; ++i) {
      if (request.fits(Place{leaf, i}.gap())) return {leaf, i};
    }
  } else {
    for (unsigned i = from; i-- > 0;) {
      if (request.fits(Place{leaf, i}.gap())) return {leaf, i};
    }
  }
  return {};
}

// The child of `inner` nearest to slot `from` (included upwards, excluded downwards) with a gap of
// `size`, or null.
template <class Traits>
template <typename Tree<Traits>::Direction kDirection>
inline Node<Traits>* Tree<Traits>::search_inner(const InnerNode* inner, unsigned from,
                                                unsigned measure, uint64_t size) {
  const uint64_t* sizes = inner->largest_gap[measure];
  if constexpr (kDirection == Direction::kUp) {
    for (unsigned i = from; i < inner->count; ++i) {
      if (sizes[i] >= size) return inner->children[i];
    }
  } else {
    for (unsigned i = from; i-- > 0;) {
      if (sizes[i] >= size) return inner->children[i];
    }
  }
  return nullptr;
}

// The first leaf in search order below `node` that has a gap of `size`. REQUIRES: there is one.
template <class Traits>
template <typename Tree<Traits>::Direction kDirection>
inline Leaf<Traits>* Tree<Traits>::descend_to_gap(AnyNode* node, unsigned measure, uint64_t size) {
  while (node->level > 0) {
    const unsigned from = kDirection == Direction::kUp ? 0 : node->count;
    node = search_inner<kDirection>(as_inner(node), from, measure, size);
  }
  return as_leaf(node);
}

// Goes on after `leaf` in search order. Null when there is no further candidate.
template <class Traits>
template <typename Tree<Traits>::Direction kDirection>
Leaf<Traits>* Tree<Traits>::next_leaf_with_gap(const LeafNode* leaf, unsigned measure,
                                               uint64_t size) {
  const AnyNode* node = leaf;
  for (; node->parent != nullptr; node = node->parent) {
    const unsigned from = slot_of(node) + (kDirection == Direction::kUp ? 1 : 0);
    AnyNode* child = search_inner<kDirection>(node->parent, from, measure, size);
    if (child != nullptr) return descend_to_gap<kDirection>(child, measure, size);
  }
  return nullptr;
}

template <class Traits>
template <typename Tree<Traits>::Direction kDirection>
inline Position<Traits> Tree<Traits>::search_from(Place at, GapRequest request) {
  const unsigned measure = request.template measure<Traits>();
  LeafNode* leaf = at.leaf;
  unsigned from = at.index;
  while (leaf != nullptr) {
    const Place found = search_leaf<kDirection>(leaf, from, request);
    if (found.leaf != nullptr) return found;
    // Only here, and only for an alignment that no measure is exact for, may a candidate fail.
    leaf = next_leaf_with_gap<kDirection>(leaf, measure, request.length);
    if (leaf != nullptr) from = kDirection == Direction::kUp ? 0 : leaf->count;
  }
  return {};
}

template <class Traits>
template <typename Tree<Traits>::Direction kDirection>
inline Position<Traits> Tree<Traits>::search_all(GapRequest request) const {
  const unsigned measure = request.template measure<Traits>();
  if (root_ == nullptr || root_largest_gap_[measure] < request.length) return {};
  LeafNode* leaf = descend_to_gap<kDirection>(root_, measure, request.length);
  return search_from<kDirection>({leaf, kDirection == Direction::kUp ? 0u : leaf->count}, request);
}

template <class Traits>
inline Position<Traits> Tree<Traits>::next_fitting_gap(Place at, GapRequest request) {
  return search_from<Direction::kUp>(at, request);
}
template <class Traits>
inline Position<Traits> Tree<Traits>::prev_fitting_gap(Place at, GapRequest request) {
  return search_from<Direction::kDown>(at, request);
}
template <class Traits>
inline Position<Traits> Tree<Traits>::lowest_fitting_gap(GapRequest request) const {
  return search_all<Direction::kUp>(request);
}
template <class Traits>
inline Position<Traits> Tree<Traits>::highest_fitting_gap(GapRequest request) const {
  return search_all<Direction::kDown>(request);
}

}  // namespace pgalloc::segment
