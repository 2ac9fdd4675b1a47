// Purpose: the second half of tree.h: keeping the largest gaps right, and searching by them.
//
// A gap that grew can only raise a maximum, in constant time per level. A gap that shrank matters
// only if it was a largest one; then its node is measured again, and so on upwards while the
// maximum falls. Measuring stops as soon as another gap of the old size turns up, which in a
// fragmented set, where most gaps are equal, is at once.
#pragma once

#include "segment/tree.h"

namespace pgalloc::segment {

template <class Traits>
inline uint64_t& Tree<Traits>::largest_gap(const AnyNode* node, unsigned measure) const {
  InnerNode* parent = node->parent;
  if (parent == nullptr) return root_largest_gap_[measure];
  return parent->largest_gap[measure][slot_of(node)];
}

template <class Traits>
uint64_t Tree<Traits>::measure_gaps(const AnyNode* node, unsigned measure, uint64_t limit) {
  uint64_t largest = 0;
  if (node->level > 0) {
    const uint64_t* sizes = as_inner(node)->largest_gap[measure];
    for (unsigned i = 0; i < node->count && largest < limit; ++i) {
      largest = std::max(largest, sizes[i]);
    }
    return largest;
  }
  const LeafNode* leaf = as_leaf(node);
  uint64_t end_before = leaf->prev != nullptr ? leaf->prev->last_end() : 0;
  for (unsigned i = 0; i < leaf->count && largest < limit; ++i) {
    largest = std::max(largest, gap_size<Traits>({end_before, leaf->ranges[i].start}, measure));
    end_before = leaf->ranges[i].end;
  }
  return largest;
}

template <class Traits>
void Tree<Traits>::raise(AnyNode* node, unsigned measure, uint64_t size) {
  for (; node != nullptr; node = node->parent) {
    uint64_t& largest = largest_gap(node, measure);
    if (size <= largest) return;
    largest = size;
  }
}

// REQUIRES: `size` is below the cached value.
template <class Traits>
void Tree<Traits>::lower(AnyNode* node, unsigned measure, uint64_t size) {
  for (;;) {
    const uint64_t before = std::exchange(largest_gap(node, measure), size);
    node = node->parent;
    if (node == nullptr || largest_gap(node, measure) != before) return;
    size = measure_gaps(node, measure, before);
    if (size == before) return;
  }
}

template <class Traits>
inline void Tree<Traits>::gap_grew(LeafNode* leaf, FileRange gap) {
  if constexpr (Traits::kTrackGaps) {
    if (gap.empty()) return;
    for (unsigned measure = 0; measure < kGapMeasures; ++measure) {
      raise(leaf, measure, gap_size<Traits>(gap, measure));
    }
  }
}

template <class Traits>
inline void Tree<Traits>::gap_shrank(LeafNode* leaf, FileRange gap) {
  if constexpr (Traits::kTrackGaps) {
    if constexpr (requires { Traits::kPlantedBug; }) return;  // the stress driver must notice
    for (unsigned measure = 0; measure < kGapMeasures; ++measure) {
      const uint64_t before = gap_size<Traits>(gap, measure);
      if (before == 0 || before != largest_gap(leaf, measure)) continue;
      const uint64_t size = measure_gaps(leaf, measure, before);
      if (size != before) lower(leaf, measure, size);
    }
  }
}

template <class Traits>
void Tree<Traits>::gaps_changed(AnyNode* node) {
  if constexpr (Traits::kTrackGaps) {
    for (unsigned measure = 0; measure < kGapMeasures; ++measure) {
      const uint64_t size = measure_gaps(node, measure);
      const uint64_t before = largest_gap(node, measure);
      if (size > before) raise(node, measure, size);
      if (size < before) lower(node, measure, size);
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
