// Purpose: the parts of SegmentSet that change boundaries between segments, but no gap.
//
// Thread safety: see segment_set.h.
#pragma once

#include "segment/segment_set.h"

namespace pgalloc::segment {

// Splits the segment at `at` into one with `left` and one with `right`, which is returned; the left
// one is just before it, in the same leaf. REQUIRES: start < key < end.
template <class Traits>
inline Position<Traits> SegmentSet<Traits>::cut(Place at, uint64_t key, const Value& left,
                                                const Value& right) {
  const Place high = tree_.open_slots({at.leaf, at.index + 1}, 1);
  const Place low{high.leaf, high.index - 1};
  high.range() = {key, low.range().end};
  high.value() = right;
  low.range().end = key;
  low.value() = left;
  return high;
}

// The same with the values that Traits say.
template <class Traits>
inline Position<Traits> SegmentSet<Traits>::cut(Place at, uint64_t key) {
  Value left = at.value();
  const Value right = Traits::split(left, at.range(), key);
  return cut(at, key, left, right);
}

// Drops `count` segments of one leaf that were merged with the segment before them. The gaps that
// go with them are empty, so no maximum changes. Returns the place after the merged segment.
template <class Traits>
inline Position<Traits> SegmentSet<Traits>::drop_merged(Place at, unsigned count) {
  tree_.close_slots(at, count);
  if (at.index == 0) tree_.first_key_changed(at.leaf);
  return tree_.settle(at);
}

template <class Traits>
std::pair<SegmentIterator<Traits>, SegmentIterator<Traits>> SegmentSet<Traits>::split(
    Iterator segment, uint64_t key) {
  PGALLOC_CHECK_OP(segment.start(), <, key);
  PGALLOC_CHECK_OP(key, <, segment.end());
  const Place right = cut(segment.at_, key);
  return {Iterator(right.prev_segment()), Iterator(right)};
}

template <class Traits>
SegmentIterator<Traits> SegmentSet<Traits>::isolate(Iterator segment, FileRange range) {
  PGALLOC_CHECK(segment.range().overlaps(range));
  Place at = segment.at_;
  tree_.reserve(at.leaf, 2);
  if (at.range().start < range.start) at = cut(at, range.start);
  if (at.range().end > range.end) at = cut(at, range.end).prev_segment();
  return Iterator(at);
}

template <class Traits>
SegmentIterator<Traits> SegmentSet<Traits>::merge_with_next(Iterator segment) {
  const Place left = segment.at_;
  const Place right = left.next_place();
  if (!touches(left, right) || !Traits::merge(left.value(), right.value())) return Iterator();
  left.range().end = right.range().end;
  return Iterator(drop_merged(right, 1).prev_segment());
}

template <class Traits>
void SegmentSet<Traits>::merge_range(FileRange range) {
  Iterator left = lower_bound_segment(range.start - (range.start > 0));
  while (left.ok() && left.end() <= range.end) {
    const Iterator merged = merge_with_next(left);
    left = merged.ok() ? merged : left.next();
  }
}

}  // namespace pgalloc::segment
