// Purpose: an ordered map from disjoint, non-empty, half-open ranges of 64-bit keys to small
// values, which can also find the first gap of a given size and alignment in logarithmic time. It
// knows nothing of pages; the core uses it for page usage, for waste, and for evictable ranges.
//
// Thread safety: externally synchronised. Searching remembers where it ended, so even const
// methods need exclusive access.
//
// n segments have n + 1 gaps between and around them, some of them empty; together they cover
// [0, UINT64_MAX). Neighbours that touch stay two segments if Traits::merge() refuses them, or if
// they came by a call that does not merge.
//
// Traits say what a value is:
//
//   struct ExampleTraits {
//     using Value = ...;  // small, default-constructible, copies without throwing; may be empty
//     static constexpr bool kTrackGaps = true;  // for the ..._large_enough_gap methods
//     static constexpr uint64_t kGapAlignment = 2 << 20;  // the alignment searches are fast for
//     // Whether `left`, directly followed by `right`, may be one segment. If so, `left` becomes
//     // the value of the whole; if not, it is left alone.
//     static bool merge(Value& left, const Value& right);
//     // `value` belonged to `range`, which is being split at `at`. Makes `value` that of the left
//     // part, and returns that of the right part.
//     static Value split(Value& value, FileRange range, uint64_t at);
//   };
//
// Merging undoes splitting: merge(left, split(left, ...)) must succeed and restore the value.
//
// Invariants (verify() checks them, together with those of tree.h and node.h)
//   1. Segments are not empty, disjoint, and in ascending order.
//   2. size() and span() are the number and the total length of the segments.
//
// Errors: a std::bad_alloc leaves the set as it was. Calls with a violated REQUIRES stop the
// process where that is cheap to see.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/units.h"
#include "segment/iterator.h"
#include "segment/tree.h"

namespace pgalloc::segment {

template <class Traits>
class SegmentSet {
 public:
  using Value = typename Traits::Value;
  using Iterator = SegmentIterator<Traits>;
  using GapIterator = segment::GapIterator<Traits>;

  SegmentSet() = default;
  SegmentSet(SegmentSet&& other) noexcept { swap(other); }
  SegmentSet& operator=(SegmentSet&& other) noexcept {
    SegmentSet old(std::move(other));
    swap(old);
    return *this;
  }
  void swap(SegmentSet& other) noexcept {
    tree_.swap(other.tree_);
    std::swap(span_, other.span_);
  }

  bool empty() const { return tree_.empty(); }
  size_t size() const { return tree_.size(); }
  // The bytes covered by segments: all of them, or those within `range`.
  uint64_t span() const { return span_; }
  uint64_t span_of(FileRange range) const;
  bool is_empty_range(FileRange range) const;
  // From the first start to the last end; {0, 0} if the set is empty.
  FileRange bounds() const;

  // --- Finding segments: not ok() if there is none
  // -------------------------------------------------

  Iterator first() const { return Iterator::from(tree_.first_place()); }
  Iterator last() const { return Iterator(tree_.end_place().prev_segment()); }
  // The segment that contains `key`.
  Iterator find(uint64_t key) const;
  // The lowest segment that contains `key` or lies above it.
  Iterator lower_bound_segment(uint64_t key) const;
  // The highest segment that contains `key` or lies below it.
  Iterator upper_bound_segment(uint64_t key) const;

  // --- Finding gaps
  // --------------------------------------------------------------------------------

  GapIterator first_gap() const { return GapIterator(tree_.first_place()); }
  GapIterator last_gap() const { return GapIterator(tree_.end_place()); }
  // The gap that contains `key`; not ok() if a segment does. UINT64_MAX counts to the last gap.
  GapIterator find_gap(uint64_t key) const;
  // The gap that contains `key`, else the one that follows (precedes) the segment that does.
  GapIterator lower_bound_gap(uint64_t key) const;
  GapIterator upper_bound_gap(uint64_t key) const;

  // The lowest (highest) gap that holds `length` bytes from a multiple of `alignment` on; for the
  // bounds, starting at the gap of the same name. Not ok() if there is none.
  // Takes logarithmic time if alignment is Traits::kGapAlignment, or if all keys are multiples of
  // it; other alignments are correct too, but may look at gaps that do not fit.
  // REQUIRES: length > 0; alignment is a power of two; Traits::kTrackGaps.
  GapIterator first_large_enough_gap(uint64_t length, uint64_t alignment = 1) const;
  GapIterator last_large_enough_gap(uint64_t length, uint64_t alignment = 1) const;
  GapIterator lower_bound_large_enough_gap(uint64_t key, uint64_t length,
                                           uint64_t alignment = 1) const;
  GapIterator upper_bound_large_enough_gap(uint64_t key, uint64_t length,
                                           uint64_t alignment = 1) const;

  // --- Adding: returns the segment that holds `range` now
  // ------------------------------------------

  // REQUIRES: `range` is not empty and overlaps no segment. Merges with both neighbours.
  Iterator insert(FileRange range, const Value& value);
  // The same, when the gap is known. REQUIRES: `gap` contains `range`.
  Iterator insert_at(GapIterator gap, FileRange range, const Value& value);
  Iterator insert_without_merging(FileRange range, const Value& value);
  // insert(), or false without effect if `range` overlaps a segment.
  bool try_insert(FileRange range, const Value& value);

  // --- Removing
  // ------------------------------------------------------------------------------------

  // Returns the gap that is left. REQUIRES: segment.ok().
  GapIterator remove(Iterator segment);
  // Segments that reach across an edge of `range` are split there.
  void remove_range(FileRange range);
  void clear() noexcept;

  // After this, so many insertions and removals of one range each cannot fail, wherever they are.
  // Throws std::bad_alloc.
  void reserve(size_t edits) { tree_.reserve(edits); }

  // --- Splitting and merging
  // -----------------------------------------------------------------------

  // REQUIRES: start < key < end. Returns both parts.
  std::pair<Iterator, Iterator> split(Iterator segment, uint64_t key);
  // Splits `segment` where it reaches beyond `range`; returns the part within.
  // REQUIRES: they overlap.
  Iterator isolate(Iterator segment, FileRange range);
  // Merges `segment` with its successor if they touch and Traits allow it; returns the merged
  // segment, else one that is not ok(), without effect.
  Iterator merge_with_next(Iterator segment);
  // Merges what can be merged at every boundary in [range.start, range.end].
  void merge_range(FileRange range);
  void merge_all() { merge_range({0, kNoKey}); }

  // --- Visiting
  // ------------------------------------------------------------------------------------

  // Calls visit(FileRange, const Value&) for the part within `range` of every segment, in order.
  // If visit returns bool, false ends it. Returns whether it got to the end.
  template <class Visit>
  bool visit_range(FileRange range, Visit&& visit) const;
  // The same with visit(FileRange) for the non-empty parts of gaps.
  template <class Visit>
  bool visit_gaps_in(FileRange range, Visit&& visit) const;
  // Calls change(FileRange part, Value& value) for the part within `range` of every segment, in
  // order. Segments are split at the edges of `range` before and merged with their neighbours
  // afterwards, including those that touch `range` from outside; none of it when change() leaves
  // things as they were. change() must not throw and not use this set. `value` is a temporary.
  template <class Change>
  void mutate_range(FileRange range, Change&& change);
  // The same, when the one segment that contains `range` is known.
  // REQUIRES: `segment` contains `range`, which is not empty.
  template <class Change>
  void mutate_within(Iterator segment, FileRange range, Change&& change) {
    mutate_part(segment.at_, range, /*merge_right=*/true, change);
  }

  // --- The whole set
  // -------------------------------------------------------------------------------

  std::vector<std::pair<FileRange, Value>> export_segments() const;
  // Replaces the contents by `segments`, without merging. Returns false, without effect, unless
  // they are non-empty, disjoint and in ascending order.
  [[nodiscard]] bool import_segments(const std::vector<std::pair<FileRange, Value>>& segments);
  // The first broken invariant in words, or nothing. Linear time.
  std::optional<std::string> verify() const;
  // The bytes of all nodes, spare ones included.
  size_t memory_bytes() const { return tree_.memory_bytes(); }

 private:
  using Place = Position<Traits>;

  static bool touches(Place left, Place right) {
    return left.is_segment() && right.is_segment() && left.range().end == right.range().start;
  }

  Place insert_in_gap(Place at, FileRange gap, FileRange range, const Value& value);
  Place insert_new(Place at, FileRange gap, FileRange range, const Value& value);

  template <class Change>
  void mutate_part(Place at, FileRange part, bool merge_right, Change& change);
  template <class Change>
  void mutate_whole(Place at, bool merge_right, Change& change);
  template <class Change>
  void mutate_prefix(Place at, uint64_t end, Change& change);
  template <class Change>
  void mutate_suffix(Place at, uint64_t start, bool merge_right, Change& change);
  template <class Change>
  void mutate_middle(Place at, FileRange part, Change& change);

  Place cut(Place at, uint64_t key, const Value& left, const Value& right);
  Place cut(Place at, uint64_t key);
  Place drop_merged(Place at, unsigned count);
  Place remove_at(Place at);
  Place remove_wholes(Place at, uint64_t end);
  void trim_front(Place at, uint64_t start);
  void trim_back(Place at, uint64_t end);

  Tree<Traits> tree_;
  uint64_t span_ = 0;
};

}  // namespace pgalloc::segment

#include "segment/find.h"
#include "segment/insert.h"
#include "segment/mutate.h"
#include "segment/remove.h"
#include "segment/split_merge.h"
#include "segment/verify.h"
