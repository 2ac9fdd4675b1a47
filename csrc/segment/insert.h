// Purpose: the parts of SegmentSet that add segments.
//
// Thread safety: see segment_set.h.
//
// Inserting first tries to extend a neighbour, or to close the hole between two: that takes no node
// and moves nothing. Only the rest opens a slot.
#pragma once

#include "segment/segment_set.h"

namespace pgalloc::segment {

template <class Traits>
inline SegmentIterator<Traits> SegmentSet<Traits>::insert(FileRange range, const Value& value) {
  return insert_at(GapIterator(tree_.place_after(range.start)), range, value);
}

template <class Traits>
inline SegmentIterator<Traits> SegmentSet<Traits>::insert_at(GapIterator gap, FileRange range,
                                                             const Value& value) {
  const FileRange free = gap.range();
  PGALLOC_CHECK_OP(range.start, <, range.end);
  PGALLOC_CHECK_OP(free.start, <=, range.start);
  PGALLOC_CHECK_OP(range.end, <=, free.end);
  return Iterator(insert_in_gap(gap.at_, free, range, value));
}

template <class Traits>
SegmentIterator<Traits> SegmentSet<Traits>::insert_without_merging(FileRange range,
                                                                   const Value& value) {
  const Place at = tree_.place_after(range.start);
  const FileRange free = at.gap();
  PGALLOC_CHECK_OP(range.start, <, range.end);
  PGALLOC_CHECK_OP(free.start, <=, range.start);
  PGALLOC_CHECK_OP(range.end, <=, free.end);
  return Iterator(insert_new(at, free, range, value));
}

template <class Traits>
bool SegmentSet<Traits>::try_insert(FileRange range, const Value& value) {
  const Place at = tree_.place_after(range.start);
  const FileRange free = at.gap();
  PGALLOC_CHECK_OP(range.start, <, range.end);
  if (!free.is_superset_of(range)) return false;
  insert_in_gap(at, free, range, value);
  return true;
}

// REQUIRES: `gap`, the one at `at`, contains `range`.
template <class Traits>
inline Position<Traits> SegmentSet<Traits>::insert_in_gap(Place at, FileRange gap, FileRange range,
                                                          const Value& value) {
  const Place below = at.prev_segment();
  const bool touches_below = below.leaf != nullptr && gap.start == range.start;
  const bool touches_above = at.is_segment() && gap.end == range.end;
  tree_.remember(at.leaf);

  if (touches_below && Traits::merge(below.value(), value)) {
    span_ += range.length();
    if (touches_above && Traits::merge(below.value(), at.value())) {
      below.range().end = at.range().end;
      tree_.close_slots(at, 1);
      if (at.index == 0) tree_.first_key_changed(at.leaf);
      tree_.gap_shrank(at.leaf, gap, {});
      return tree_.settle(at).prev_segment();
    }
    below.range().end = range.end;
    if (at.is_segment()) tree_.gap_shrank(at.leaf, gap, {range.end, gap.end});
    return below;
  }
  if (touches_above) {
    Value merged = value;
    if (Traits::merge(merged, at.value())) {
      span_ += range.length();
      at.value() = merged;
      at.range().start = range.start;
      if (at.index == 0) tree_.first_key_changed(at.leaf);
      tree_.gap_shrank(at.leaf, gap, {gap.start, range.start});
      return at;
    }
  }
  return insert_new(at, gap, range, value);
}

// REQUIRES: `gap`, the one at `at`, contains `range`.
template <class Traits>
Position<Traits> SegmentSet<Traits>::insert_new(Place at, FileRange gap, FileRange range,
                                                const Value& value) {
  const Place slot = tree_.open_slots(tree_.roomier(at), 1);
  slot.range() = range;
  slot.value() = value;
  span_ += range.length();
  if (slot.index == 0) tree_.first_key_changed(slot.leaf);
  const Place above = slot.next_place();
  if (above.is_segment()) tree_.gap_shrank(above.leaf, gap, {range.end, gap.end});
  tree_.gap_grew(slot.leaf, {gap.start, range.start});
  return slot;
}

template <class Traits>
bool SegmentSet<Traits>::import_segments(const std::vector<std::pair<FileRange, Value>>& segments) {
  uint64_t end = 0;
  for (const auto& [range, value] : segments) {
    if (range.empty() || range.start < end) return false;
    end = range.end;
  }
  SegmentSet imported;
  for (const auto& [range, value] : segments) {
    const GapIterator last = imported.last_gap();
    imported.insert_new(last.at_, last.range(), range, value);
  }
  swap(imported);
  return true;
}

}  // namespace pgalloc::segment
