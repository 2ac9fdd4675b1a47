// Purpose: the parts of SegmentSet that look without changing anything.
//
// Thread safety: see segment_set.h.
#pragma once

#include <type_traits>

#include "segment/segment_set.h"

namespace pgalloc::segment {

namespace internal {

// Whether `visit(args...)` wants to go on; a visitor without an answer always does.
template <class Visit, class... Args>
bool goes_on(Visit& visit, const Args&... args) {
  if constexpr (std::is_void_v<std::invoke_result_t<Visit&, const Args&...>>) {
    visit(args...);
    return true;
  } else {
    return visit(args...);
  }
}

}  // namespace internal

// --- Segments ------------------------------------------------------------------------------------

template <class Traits>
inline SegmentIterator<Traits> SegmentSet<Traits>::find(uint64_t key) const {
  const Place below = tree_.segment_at_or_below(key);
  return below.leaf != nullptr && key < below.range().end ? Iterator(below) : Iterator();
}

template <class Traits>
inline SegmentIterator<Traits> SegmentSet<Traits>::lower_bound_segment(uint64_t key) const {
  return Iterator::from(tree_.place_at_or_after(key));
}

template <class Traits>
inline SegmentIterator<Traits> SegmentSet<Traits>::upper_bound_segment(uint64_t key) const {
  return Iterator(tree_.segment_at_or_below(key));
}

template <class Traits>
FileRange SegmentSet<Traits>::bounds() const {
  if (empty()) return {};
  return {first().start(), last().end()};
}

template <class Traits>
bool SegmentSet<Traits>::is_empty_range(FileRange range) const {
  if (range.empty()) return true;
  const Place at = tree_.place_at_or_after(range.start);
  return !at.is_segment() || range.end <= at.range().start;
}

template <class Traits>
uint64_t SegmentSet<Traits>::span_of(FileRange range) const {
  uint64_t span = 0;
  visit_range(range, [&](FileRange part, const Value&) { span += part.length(); });
  return span;
}

// --- Gaps ----------------------------------------------------------------------------------------

template <class Traits>
inline GapIterator<Traits> SegmentSet<Traits>::lower_bound_gap(uint64_t key) const {
  return GapIterator(tree_.place_after(key));
}

template <class Traits>
inline GapIterator<Traits> SegmentSet<Traits>::upper_bound_gap(uint64_t key) const {
  const Place above = tree_.place_after(key);
  const Place below = above.prev_segment();
  return GapIterator(below.leaf != nullptr && key < below.range().end ? below : above);
}

template <class Traits>
inline GapIterator<Traits> SegmentSet<Traits>::find_gap(uint64_t key) const {
  const Place above = tree_.place_after(key);
  const Place below = above.prev_segment();
  return below.leaf != nullptr && key < below.range().end ? GapIterator() : GapIterator(above);
}

template <class Traits>
inline GapIterator<Traits> SegmentSet<Traits>::first_large_enough_gap(uint64_t length,
                                                                      uint64_t alignment) const {
  const GapRequest request{length, alignment};
  const Place found = tree_.lowest_fitting_gap(request);
  if (found.leaf != nullptr) return GapIterator(found);
  const GapIterator last = last_gap();
  return request.fits(last.range()) ? last : GapIterator();
}

template <class Traits>
inline GapIterator<Traits> SegmentSet<Traits>::last_large_enough_gap(uint64_t length,
                                                                     uint64_t alignment) const {
  const GapRequest request{length, alignment};
  const GapIterator last = last_gap();
  if (request.fits(last.range())) return last;
  return GapIterator::found_or_none(tree_.highest_fitting_gap(request));
}

template <class Traits>
inline GapIterator<Traits> SegmentSet<Traits>::lower_bound_large_enough_gap(
    uint64_t key, uint64_t length, uint64_t alignment) const {
  const GapIterator gap = lower_bound_gap(key);
  if (GapRequest{length, alignment}.fits(gap.range())) return gap;
  return gap.next_large_enough_gap(length, alignment);
}

template <class Traits>
inline GapIterator<Traits> SegmentSet<Traits>::upper_bound_large_enough_gap(
    uint64_t key, uint64_t length, uint64_t alignment) const {
  const GapIterator gap = upper_bound_gap(key);
  if (GapRequest{length, alignment}.fits(gap.range())) return gap;
  return gap.prev_large_enough_gap(length, alignment);
}

// --- Visiting ------------------------------------------------------------------------------------

template <class Traits>
template <class Visit>
bool SegmentSet<Traits>::visit_range(FileRange range, Visit&& visit) const {
  if (range.empty()) return true;
  for (Place at = tree_.place_at_or_after(range.start);
       at.is_segment() && at.range().start < range.end; at = at.next_place()) {
    const Value& value = at.value();
    if (!internal::goes_on(visit, at.range().intersect(range), value)) return false;
  }
  return true;
}

template <class Traits>
template <class Visit>
bool SegmentSet<Traits>::visit_gaps_in(FileRange range, Visit&& visit) const {
  if (range.empty()) return true;
  for (GapIterator gap = lower_bound_gap(range.start); gap.ok(); gap = gap.next()) {
    const FileRange part = gap.range().intersect(range);
    if (!part.empty() && !internal::goes_on(visit, part)) return false;
    if (gap.range().end >= range.end) break;
  }
  return true;
}

template <class Traits>
std::vector<std::pair<FileRange, typename Traits::Value>> SegmentSet<Traits>::export_segments()
    const {
  std::vector<std::pair<FileRange, Value>> segments;
  segments.reserve(size());
  for (Iterator at = first(); at.ok(); at = at.next())
    segments.emplace_back(at.range(), at.value());
  return segments;
}

}  // namespace pgalloc::segment
