// Purpose: the parts of SegmentSet that remove segments.
//
// Thread safety: see segment_set.h.
#pragma once

#include "segment/segment_set.h"

namespace pgalloc::segment {

template <class Traits>
inline GapIterator<Traits> SegmentSet<Traits>::remove(Iterator segment) {
  PGALLOC_CHECK(segment.ok());
  return GapIterator(remove_at(segment.at_));
}

template <class Traits>
inline Position<Traits> SegmentSet<Traits>::remove_at(Place at) {
  const Place above = at.next_place();
  const FileRange gap_below = at.gap();
  const FileRange gap{gap_below.start, above.gap().end};
  span_ -= at.range().length();
  tree_.close_slots(at, 1);
  if (at.index == 0) tree_.first_key_changed(at.leaf);
  if (above.leaf == at.leaf && at.is_segment()) {
    tree_.gap_grew(at.leaf, gap);
  } else {
    tree_.gap_shrank(at.leaf, gap_below, {});
    if (above.leaf != at.leaf) tree_.gap_grew(above.leaf, gap);
  }
  return tree_.settle(at);
}

template <class Traits>
inline void SegmentSet<Traits>::remove_range(FileRange range) {
  if (range.empty()) return;
  Place at = tree_.place_at_or_after(range.start);
  if (!at.is_segment() || at.range().start >= range.end) return;
  if (at.range() == range) {
    remove_at(at);
    return;
  }
  if (at.range().start < range.start) {
    if (at.range().end > range.end) {
      trim_front(cut(at, range.start), range.end);
      return;
    }
    trim_back(at, range.start);
    at = at.next_place();
  }
  at = remove_wholes(at, range.end);
  if (at.is_segment() && at.range().start < range.end) trim_front(at, range.end);
}

// Removes the segments from `at` on that end at or before `end`. Returns the place they leave.
template <class Traits>
inline Position<Traits> SegmentSet<Traits>::remove_wholes(Place at, uint64_t end) {
  while (at.is_segment() && at.range().end <= end) {
    unsigned count = 0;
    uint64_t bytes = 0;
    for (Place next = at; next.is_segment() && next.range().end <= end; ++next.index) {
      bytes += next.range().length();
      ++count;
    }
    if (count == 1) {
      at = remove_at(at);
      continue;
    }
    span_ -= bytes;
    tree_.close_slots(at, count);
    if (at.index == 0) tree_.first_key_changed(at.leaf);
    tree_.gaps_changed(at.leaf);
    at = tree_.settle(at);
    if (at.is_segment()) tree_.gap_grew(at.leaf, at.gap());
  }
  return at;
}

// Cuts off what the segment at `at` has before `start`.
template <class Traits>
inline void SegmentSet<Traits>::trim_front(Place at, uint64_t start) {
  const FileRange whole = at.range();
  at.value() = Traits::split(at.value(), whole, start);
  at.range().start = start;
  span_ -= start - whole.start;
  if (at.index == 0) tree_.first_key_changed(at.leaf);
  tree_.gap_grew(at.leaf, at.gap());
}

// Cuts off what the segment at `at` has from `end` on.
template <class Traits>
inline void SegmentSet<Traits>::trim_back(Place at, uint64_t end) {
  const FileRange whole = at.range();
  Traits::split(at.value(), whole, end);
  at.range().end = end;
  span_ -= whole.end - end;
  const Place above = at.next_place();
  if (above.is_segment()) tree_.gap_grew(above.leaf, above.gap());
}

template <class Traits>
void SegmentSet<Traits>::clear() noexcept {
  tree_.clear();
  span_ = 0;
}

}  // namespace pgalloc::segment
