// Purpose: SegmentSet::mutate_range(): changing the values of a range, with as few segments
// appearing and disappearing as possible.
//
// Thread safety: see segment_set.h.
//
// Each part of a segment has one of four shapes, and each shape its own function. They change a
// copy of the value first, see with which neighbours the result merges, and then edit the tree
// once:
//
//   whole    |ppp|ppp|  changed in place; merged neighbours disappear
//   prefix   |ppp|---|  merges with the segment before it: the boundary moves; else one more slot
//   suffix   |---|ppp|  likewise with the segment after it
//   middle   |--|pp|--| two more slots, opened at once
//
// No gap changes: segments that merge touch, and so do the parts of a split one.
#pragma once

#include "segment/segment_set.h"

namespace pgalloc::segment {

template <class Traits>
template <class Change>
inline void SegmentSet<Traits>::mutate_range(FileRange range, Change&& change) {
  if (range.empty()) return;
  Place at = tree_.place_at_or_after(range.start);
  if (!at.is_segment() || at.range().start >= range.end) return;
  if (at.range().end < range.end) {
    // Several segments. Both edges may have to be split, after change() has been called: what that
    // takes is fetched here.
    tree_.reserve(at.leaf, tree_.segment_at_or_below(range.end - 1).leaf, 2);
  }
  for (;;) {
    const FileRange whole = at.range();
    const bool is_last = whole.end >= range.end;
    // What comes next within the range has not been changed yet, and must not merge.
    mutate_part(at, whole.intersect(range), is_last, change);
    if (is_last) return;
    at = tree_.place_at_or_after(whole.end);
    if (!at.is_segment() || at.range().start >= range.end) return;
  }
}

template <class Traits>
template <class Change>
inline void SegmentSet<Traits>::mutate_part(Place at, FileRange part, bool merge_right,
                                            Change& change) {
  const FileRange whole = at.range();
  if (part.start == whole.start) {
    if (part.end == whole.end) {
      mutate_whole(at, merge_right, change);
    } else {
      mutate_prefix(at, part.end, change);
    }
  } else if (part.end == whole.end) {
    mutate_suffix(at, part.start, merge_right, change);
  } else {
    mutate_middle(at, part, change);
  }
}

template <class Traits>
template <class Change>
inline void SegmentSet<Traits>::mutate_whole(Place at, bool merge_right, Change& change) {
  change(at.range(), at.value());
  const Place below = at.prev_segment();
  const Place above = at.next_place();
  const bool left = touches(below, at) && Traits::merge(below.value(), at.value());
  const Place kept = left ? below : at;
  const bool right =
      merge_right && touches(at, above) && Traits::merge(kept.value(), above.value());
  if (right) at.range().end = above.range().end;
  const bool drop_both = left && right && above.leaf == at.leaf;
  // Dropping `above` leaves `at` and `below` in place if it is in another leaf: that one may only
  // give segments to the leaves before it.
  if (right && !drop_both) drop_merged(above, 1);
  if (left) {
    below.range().end = at.range().end;
    drop_merged(at, drop_both ? 2 : 1);
  }
}

template <class Traits>
template <class Change>
inline void SegmentSet<Traits>::mutate_prefix(Place at, uint64_t end, Change& change) {
  tree_.reserve(at.leaf, 1);
  const FileRange whole = at.range();
  Value value = at.value();
  const Value rest = Traits::split(value, whole, end);
  change(FileRange{whole.start, end}, value);

  const Place below = at.prev_segment();
  if (touches(below, at) && Traits::merge(below.value(), value)) {
    if (Traits::merge(below.value(), rest)) {
      below.range().end = whole.end;
      drop_merged(at, 1);
      return;
    }
    below.range().end = end;
    at.range().start = end;
    at.value() = rest;
    if (at.index == 0) tree_.first_key_changed(at.leaf);
    return;
  }
  if (Traits::merge(value, rest)) {
    at.value() = value;
    return;
  }
  cut(at, end, value, rest);
}

template <class Traits>
template <class Change>
inline void SegmentSet<Traits>::mutate_suffix(Place at, uint64_t start, bool merge_right,
                                              Change& change) {
  tree_.reserve(at.leaf, 1);
  const FileRange whole = at.range();
  Value rest = at.value();
  Value value = Traits::split(rest, whole, start);
  change(FileRange{start, whole.end}, value);

  const Place above = at.next_place();
  const bool may_merge = merge_right && touches(at, above);
  if (Traits::merge(rest, value)) {
    at.value() = rest;
    if (may_merge && Traits::merge(at.value(), above.value())) {
      at.range().end = above.range().end;
      drop_merged(above, 1);
    }
    return;
  }
  if (may_merge && Traits::merge(value, above.value())) {
    at.range().end = start;
    at.value() = rest;
    above.range().start = start;
    above.value() = value;
    if (above.index == 0) tree_.first_key_changed(above.leaf);
    return;
  }
  cut(at, start, rest, value);
}

template <class Traits>
template <class Change>
inline void SegmentSet<Traits>::mutate_middle(Place at, FileRange part, Change& change) {
  tree_.reserve(at.leaf, 2);
  const FileRange whole = at.range();
  Value low = at.value();
  Value value = Traits::split(low, whole, part.start);
  const Value high = Traits::split(value, {part.start, whole.end}, part.end);
  change(part, value);

  if (Traits::merge(low, value)) {
    if (Traits::merge(low, high)) {
      at.value() = low;
    } else {
      cut(at, part.end, low, high);
    }
    return;
  }
  if (Traits::merge(value, high)) {
    cut(at, part.start, low, value);
    return;
  }
  const Place middle = tree_.open_slots({at.leaf, at.index + 1}, 2);
  const Place left{middle.leaf, middle.index - 1};
  const Place right{middle.leaf, middle.index + 1};
  left.range().end = part.start;
  left.value() = low;
  middle.range() = part;
  middle.value() = value;
  right.range() = {part.end, whole.end};
  right.value() = high;
}

}  // namespace pgalloc::segment
