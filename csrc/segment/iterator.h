// Purpose: the two iterators of a SegmentSet. They alternate: gap, segment, gap, ..., segment, gap.
//
// Thread safety: externally synchronised, like the set.
//
// Iterators are small values. next() and its kin do not advance an iterator but return another one:
//   for (auto segment = set.first(); segment.ok(); segment = segment.next()) ...
// Every change of the set invalidates all iterators, except those that the call returns. Writing
// through value() is no change of the set.
#pragma once

#include <cstdint>

#include "base/check.h"
#include "segment/tree.h"

namespace pgalloc::segment {

template <class Traits>
class SegmentSet;
template <class Traits>
class GapIterator;

// A segment, or none.
template <class Traits>
class SegmentIterator {
 public:
  using Value = typename Traits::Value;

  SegmentIterator() = default;

  bool ok() const { return at_.leaf != nullptr; }
  // REQUIRES (all below): ok().
  FileRange range() const { return at_.range(); }
  uint64_t start() const { return at_.range().start; }
  uint64_t end() const { return at_.range().end; }
  Value& value() const { return at_.value(); }

  // The neighbouring segment; not ok() if there is none.
  SegmentIterator next() const { return from(at_.next_place()); }
  SegmentIterator prev() const { return SegmentIterator(at_.prev_segment()); }
  // The gap that touches this segment; it may be empty.
  GapIterator<Traits> next_gap() const { return GapIterator<Traits>(at_.next_place()); }
  GapIterator<Traits> prev_gap() const { return GapIterator<Traits>(at_); }

  friend bool operator==(const SegmentIterator&, const SegmentIterator&) = default;

 private:
  friend class SegmentSet<Traits>;
  friend class GapIterator<Traits>;
  using Place = Position<Traits>;

  explicit SegmentIterator(Place at) : at_(at) {}
  // The segment at `place`, if one is there.
  static SegmentIterator from(Place place) {
    return place.is_segment() ? SegmentIterator(place) : SegmentIterator();
  }

  Place at_;  // a segment, or {}
};

// A gap, possibly empty, or none. The first gap begins at 0, the last one ends at UINT64_MAX.
template <class Traits>
class GapIterator {
 public:
  GapIterator() = default;

  bool ok() const { return at_ != kNowhere; }
  // REQUIRES (all below): ok().
  FileRange range() const { return at_.gap(); }
  uint64_t start() const { return range().start; }
  uint64_t end() const { return range().end; }

  // The segment that touches this gap; not ok() if there is none.
  SegmentIterator<Traits> next_segment() const { return SegmentIterator<Traits>::from(at_); }
  SegmentIterator<Traits> prev_segment() const {
    return SegmentIterator<Traits>(at_.prev_segment());
  }

  GapIterator next() const {
    return at_.is_segment() ? GapIterator(at_.next_place()) : GapIterator();
  }
  GapIterator prev() const {
    const Place before = at_.prev_segment();
    return before.leaf != nullptr ? GapIterator(before) : GapIterator();
  }
  GapIterator next_non_empty() const {
    GapIterator gap = next();
    while (gap.ok() && gap.range().empty()) gap = gap.next();
    return gap;
  }
  GapIterator prev_non_empty() const {
    GapIterator gap = prev();
    while (gap.ok() && gap.range().empty()) gap = gap.prev();
    return gap;
  }

  // The nearest gap above (below) this one that holds `length` bytes from a multiple of `alignment`
  // on. REQUIRES: length > 0; alignment is a power of two; Traits::kTrackGaps.
  GapIterator next_large_enough_gap(uint64_t length, uint64_t alignment = 1) const {
    if (!at_.is_segment()) return {};
    const GapRequest request{length, alignment};
    const Place found = Tree<Traits>::next_fitting_gap({at_.leaf, at_.index + 1}, request);
    if (found.leaf != nullptr) return GapIterator(found);
    const GapIterator last(Tree<Traits>::end_place_of(at_.leaf));
    return request.fits(last.range()) ? last : GapIterator();
  }
  GapIterator prev_large_enough_gap(uint64_t length, uint64_t alignment = 1) const {
    if (at_.leaf == nullptr) return {};
    return found_or_none(Tree<Traits>::prev_fitting_gap(at_, {length, alignment}));
  }

  friend bool operator==(const GapIterator&, const GapIterator&) = default;

 private:
  friend class SegmentSet<Traits>;
  friend class SegmentIterator<Traits>;
  using Place = Position<Traits>;

  // {} is the one gap of an empty set, so "none" needs a place of its own.
  static constexpr Place kNowhere{nullptr, ~uint32_t{0}};

  explicit GapIterator(Place at) : at_(at) {}
  static GapIterator found_or_none(Place found) {
    return found.leaf != nullptr ? GapIterator(found) : GapIterator();
  }

  Place at_ = kNowhere;  // canonical
};

}  // namespace pgalloc::segment
