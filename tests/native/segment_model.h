// Purpose: SegmentSet against a naive model: random operations, and what is found at random keys.
//
// Thread safety: externally synchronised.
//
// The model is a sorted vector, and every method is written down again for it in the most obvious
// way. Each operation is followed by verify() and a comparison of contents; finders are compared at
// random keys, with a preference for keys at and next to boundaries. tests/native takes some steps,
// stress/segment_set_driver.cc as many as there is time for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "base/units.h"
#include "native/memory.h"
#include "native/support.h"
#include "segment/segment_set.h"

namespace pgalloc::native_tests {

using segment::SegmentSet;

constexpr uint64_t kEnd = UINT64_MAX;

class SegmentDifference : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// --- What is tested ------------------------------------------------------------------------------

struct UsageValue {
  uint32_t refs;
  uint32_t memcg;
  uint8_t kind;
  uint8_t committed;
  friend bool operator==(const UsageValue&, const UsageValue&) = default;
};

struct UsageTraits {
  using Value = UsageValue;
  static constexpr bool kTrackGaps = true;
  static constexpr uint64_t kGapAlignment = kUsualHugePageSize;
  static bool merge(Value& left, const Value& right) { return left == right; }
  static Value split(Value& value, FileRange, uint64_t) { return value; }
  static Value make(uint64_t number) { return {static_cast<uint32_t>(number), 0, 1, 0}; }
};

// Gaps tracked at an alignment that small keys meet often.
struct SmallTraits : UsageTraits {
  static constexpr uint64_t kGapAlignment = 8;
};

struct NoValue {
  friend bool operator==(const NoValue&, const NoValue&) = default;
};

struct EmptyTraits {
  using Value = NoValue;
  static constexpr bool kTrackGaps = false;
  static bool merge(Value&, const Value&) { return true; }
  static Value split(Value&, FileRange, uint64_t) { return {}; }
  static Value make(uint64_t) { return {}; }
};

struct EmptyTrackedTraits : EmptyTraits {
  static constexpr bool kTrackGaps = true;
  static constexpr uint64_t kGapAlignment = 64;
};

// Merges most of what differs, and changes values in doing so: the left value is a set of bits that
// takes up the bits of the right one, unless they disagree in parity.
struct OddTraits {
  using Value = uint16_t;
  static constexpr bool kTrackGaps = true;
  static constexpr uint64_t kGapAlignment = 16;
  static bool merge(Value& left, const Value& right) {
    if ((left ^ right) & 1) return false;
    left |= right;
    return true;
  }
  static Value split(Value& value, FileRange, uint64_t) { return value; }
  static Value make(uint64_t number) { return static_cast<Value>(number * 37); }
};

// --- The model -----------------------------------------------------------------------------------

template <class Traits>
struct SegmentModel {
  using Value = typename Traits::Value;
  using Segment = std::pair<FileRange, Value>;

  std::vector<Segment> segments;

  bool overlaps(FileRange range) const {
    return std::any_of(segments.begin(), segments.end(),
                       [&](const Segment& s) { return s.first.overlaps(range); });
  }
  FileRange gap(size_t i) const {
    return {i > 0 ? segments[i - 1].first.end : 0,
            i < segments.size() ? segments[i].first.start : kEnd};
  }
  void insert(FileRange range, Value value, bool merge) {
    size_t i = 0;
    while (i < segments.size() && segments[i].first.start < range.start) ++i;
    segments.insert(segments.begin() + i, {range, value});
    if (!merge) return;
    if (i > 0 && merge_at(i)) --i;
    merge_at(i + 1);
  }
  // Merges segment i with the one before it, if that may be.
  bool merge_at(size_t i) {
    if (i == 0 || i >= segments.size()) return false;
    auto& [left, left_value] = segments[i - 1];
    const auto& [right, right_value] = segments[i];
    if (left.end != right.start || !Traits::merge(left_value, right_value)) return false;
    left.end = right.end;
    segments.erase(segments.begin() + i);
    return true;
  }
  void cut(uint64_t key) {
    for (size_t i = 0; i < segments.size(); ++i) {
      auto& [range, value] = segments[i];
      if (range.start >= key || key >= range.end) continue;
      const Value right_value = Traits::split(value, range, key);
      const FileRange right{key, range.end};
      range.end = key;
      segments.insert(segments.begin() + i + 1, {right, right_value});
      return;
    }
  }
  void remove(FileRange range) {
    if (range.empty()) return;
    cut(range.start);
    cut(range.end);
    std::erase_if(segments, [&](const Segment& s) { return range.is_superset_of(s.first); });
  }
  void merge(FileRange range) {
    for (size_t i = 1; i < segments.size();) {
      const uint64_t border = segments[i].first.start;
      const bool merged = range.start <= border && border <= range.end && merge_at(i);
      if (!merged) ++i;
    }
  }
  template <class Change>
  void mutate(FileRange range, Change change) {
    if (range.empty()) return;
    cut(range.start);
    cut(range.end);
    for (auto& [part, value] : segments) {
      if (range.is_superset_of(part)) change(part, value);
    }
    merge(range);
  }
};

// --- The comparison ------------------------------------------------------------------------------

struct SegmentShape {
  uint64_t key_space;    // keys are below
  uint64_t unit;         // and multiples of this
  uint64_t length_max;   // in units
  size_t segments_goal;  // the set grows and shrinks around this
  uint64_t verify_every;
};

template <class Traits>
class SegmentComparison {
 public:
  using Value = typename Traits::Value;
  using Set = SegmentSet<Traits>;

  SegmentComparison(SegmentShape shape, uint64_t seed) : shape_(shape), random_(seed) {}

  // Throws SegmentDifference.
  void run(uint64_t operations) {
    for (; step_ < operations; ++step_) {
      edit();
      if (step_ % shape_.verify_every != 0) continue;
      compare_contents();
      for (int i = 0; i < 4; ++i) compare_finders();
    }
    compare_contents();
    set_.clear();
    model_.segments.clear();
    compare_contents();
  }

 private:
  [[noreturn]] void fail(const std::string& what) {
    allocations_left = -1;
    throw SegmentDifference("step " + std::to_string(step_) + ", operation " + operation_ + ": " +
                            what);
  }
  void expect(bool condition, const char* what) {
    if (!condition) fail(what);
  }

  // A multiple of the unit; often a boundary or next to one.
  uint64_t pick_key() {
    const auto& segments = model_.segments;
    uint64_t key = random_.below(shape_.key_space);
    if (!segments.empty() && !random_.one_in(3)) {
      const FileRange range = segments[random_.below(segments.size())].first;
      key = random_.one_in(2) ? range.start : range.end;
      if (random_.one_in(4) && key + shape_.unit > key) key += shape_.unit;
      if (random_.one_in(4) && key >= shape_.unit) key -= shape_.unit;
    }
    return key - key % shape_.unit;
  }
  FileRange pick_range() {
    uint64_t start = pick_key();
    uint64_t end = pick_key();
    if (!random_.one_in(3)) {
      const uint64_t length = shape_.unit * (1 + random_.below(shape_.length_max));
      end = start > kEnd - length ? kEnd : start + length;
    }
    if (end < start) std::swap(start, end);
    return {start, end};
  }
  // A range within some gap, often all of it or touching an edge; or an empty one.
  FileRange pick_free_range() {
    const size_t index = random_.below(model_.segments.size() + 1);
    FileRange gap = model_.gap(index);
    if (index == model_.segments.size()) {
      gap.end = std::max(gap.start, std::min(gap.end, shape_.key_space));
    }
    if (gap.empty()) return gap;
    const uint64_t units = std::max<uint64_t>(gap.length() / shape_.unit, 1);
    const uint64_t length = std::min(units, 1 + random_.below(shape_.length_max)) * shape_.unit;
    if (gap.length() <= length) return gap;
    switch (random_.below(3)) {
      case 0:
        return {gap.start, gap.start + length};
      case 1:
        return {gap.end - length, gap.end};
      default:
        const uint64_t slack = (gap.length() - length) / shape_.unit;
        const uint64_t start = gap.start + random_.below(slack + 1) * shape_.unit;
        return {start, start + length};
    }
  }
  Value pick_value() { return Traits::make(random_.below(3)); }

  // Runs `edit` on the set, sometimes while allocations fail: then nothing may change, and the
  // second attempt succeeds.
  template <class Edit>
  void attempt(const char* operation, Edit edit) {
    operation_ = operation;
    if (random_.one_in(4)) {
      const auto before = set_.export_segments();
      allocations_left = static_cast<int64_t>(random_.below(3));
      try {
        edit();
        allocations_left = -1;
        return;
      } catch (const std::bad_alloc&) {
        allocations_left = -1;
        expect(set_.export_segments() == before, "changed in spite of bad_alloc");
        expect(!set_.verify(), "broken by bad_alloc");
      }
    }
    edit();
  }

  void edit() {
    if (step_ % 512 == 0) growing_ = set_.size() < shape_.segments_goal / 2 || random_.one_in(2);
    if (set_.size() > shape_.segments_goal) growing_ = false;
    const uint64_t choice = random_.below(growing_ ? 64 : 100);
    if (choice < 40) return edit_insert();
    if (choice < 62) return edit_mutate();
    if (choice < 64) return edit_structure();
    edit_remove();
  }

  void edit_insert() {
    const FileRange range = random_.one_in(8) ? pick_range() : pick_free_range();
    if (range.empty()) return;
    const Value value = pick_value();
    const bool overlaps = model_.overlaps(range);
    const uint64_t way = overlaps ? 0 : random_.below(4);
    bool inserted = true;
    typename Set::Iterator segment;
    if (way == 0) {
      attempt("try_insert", [&] { inserted = set_.try_insert(range, value); });
    } else if (way == 1) {
      attempt("insert", [&] { segment = set_.insert(range, value); });
    } else if (way == 2) {
      attempt("insert_at",
              [&] { segment = set_.insert_at(set_.find_gap(range.start), range, value); });
    } else {
      attempt("insert_without_merging",
              [&] { segment = set_.insert_without_merging(range, value); });
      expect(segment.range() == range, "insert_without_merging returned another segment");
    }
    expect(inserted == !overlaps, "wrong answer");
    if (inserted) model_.insert(range, value, way != 3);
    if (way != 0) expect(segment.range().is_superset_of(range), "returned the wrong segment");
  }

  void edit_mutate() {
    const FileRange range = pick_range();
    const Value value = pick_value();
    const uint64_t way = random_.below(4);
    std::vector<FileRange> parts;
    const auto change = [&](FileRange part, Value& changed) {
      parts.push_back(part);
      if (way > 0) changed = value;  // else nothing changes, and all must be as before
    };
    attempt("mutate_range", [&] {
      expect(parts.empty(), "change() was called before bad_alloc");
      parts.reserve(model_.segments.size() + 2);
      set_.mutate_range(range, change);
    });
    std::vector<FileRange> expected_parts = std::exchange(parts, {});
    model_.mutate(range, change);
    if (!std::is_same_v<Traits, OddTraits>) {
      expect(parts == expected_parts, "changed other parts");
    }
  }

  void edit_remove() {
    if (random_.one_in(2) && !model_.segments.empty()) {
      operation_ = "remove";
      const size_t index = random_.below(model_.segments.size());
      const auto segment = set_.find(model_.segments[index].first.start);
      expect(segment.ok(), "segment is missing");
      const auto gap = set_.remove(segment);
      model_.segments.erase(model_.segments.begin() + index);
      expect(gap.range() == model_.gap(index), "returned the wrong gap");
      return;
    }
    FileRange range = pick_range();
    if (range.length() > shape_.key_space / 16 && !random_.one_in(50)) return;
    attempt("remove_range", [&] { set_.remove_range(range); });
    model_.remove(range);
  }

  void edit_structure() {
    const FileRange range = pick_range();
    const auto segment = set_.find(range.start);
    switch (random_.below(6)) {
      case 0:
        if (!segment.ok() || segment.start() == range.start) return;
        attempt("split", [&] {
          const auto [left, right] = set_.split(set_.find(range.start), range.start);
          expect(left.end() == range.start && right.start() == range.start, "wrong parts");
          expect(left.next() == right && right.prev() == left, "parts are not neighbours");
        });
        model_.cut(range.start);
        return;
      case 1: {
        if (!segment.ok() || range.empty()) return;
        const FileRange wanted = segment.range().intersect(range);
        attempt("isolate", [&] {
          expect(set_.isolate(set_.find(range.start), range).range() == wanted, "wrong part");
        });
        model_.cut(range.start);
        model_.cut(range.end < wanted.end ? range.end : wanted.end);
        return;
      }
      case 2: {
        if (!segment.ok()) return;
        operation_ = "merge_with_next";
        size_t index = 0;
        while (!model_.segments[index].first.contains(range.start)) ++index;
        const bool merged = model_.merge_at(index + 1);
        const auto result = set_.merge_with_next(segment);
        expect(result.ok() == merged, "wrong answer");
        if (merged) expect(result.range() == model_.segments[index].first, "wrong segment");
        return;
      }
      case 3:
        operation_ = "merge_range";
        set_.merge_range(range);
        model_.merge(range);
        return;
      case 4: {
        operation_ = "merge_all";
        if (!random_.one_in(10)) return;
        set_.merge_all();
        model_.merge({0, kEnd});
        return;
      }
      default:
        edit_import();
    }
  }

  void edit_import() {
    if (!random_.one_in(8)) return;
    auto segments = set_.export_segments();
    if (segments.size() > 1 && random_.one_in(2)) {
      std::swap(segments.front(), segments.back());
      attempt("import_segments", [&] { expect(!set_.import_segments(segments), "accepted"); });
      return;
    }
    attempt("import_segments", [&] { expect(set_.import_segments(segments), "refused"); });
    Set other(std::move(set_));
    expect(set_.empty() && set_.span() == 0, "not empty after a move");
    set_ = std::move(other);
  }

  void compare_contents() {
    if (const auto problem = set_.verify()) fail(*problem);
    const auto& segments = model_.segments;
    expect(set_.size() == segments.size(), "wrong size");
    expect(set_.empty() == segments.empty(), "wrong empty()");
    expect(set_.export_segments() == segments, "wrong contents");
    uint64_t span = 0;
    for (const auto& segment : segments) span += segment.first.length();
    expect(set_.span() == span, "wrong span");
    const FileRange bounds =
        segments.empty() ? FileRange{}
                         : FileRange{segments.front().first.start, segments.back().first.end};
    expect(set_.bounds() == bounds, "wrong bounds");
  }

  void expect_segment(typename Set::Iterator found, size_t index, const char* what) {
    const bool exists = index < model_.segments.size();
    expect(found.ok() == exists && (!exists || (found.range() == model_.segments[index].first &&
                                                found.value() == model_.segments[index].second)),
           what);
  }
  // Gaps are numbered 0 to n; any other index means none.
  void expect_gap(typename Set::GapIterator found, size_t index, const char* what) {
    const bool exists = index <= model_.segments.size();
    expect(found.ok() == exists && (!exists || found.range() == model_.gap(index)), what);
  }

  void compare_finders() {
    const auto& segments = model_.segments;
    const size_t count = segments.size();
    const size_t none = SIZE_MAX;
    uint64_t key = random_.one_in(50) ? kEnd - random_.below(2) : pick_key();
    if (random_.one_in(4)) key += random_.below(shape_.unit);

    size_t above = 0;  // the first segment after `key`; gap `above` precedes it
    while (above < count && segments[above].first.start <= key) ++above;
    const bool inside = above > 0 && key < segments[above - 1].first.end;
    const size_t below_gap = inside ? above - 1 : above;
    operation_ = "finders";
    expect_segment(set_.find(key), inside ? above - 1 : none, "find");
    expect_segment(set_.lower_bound_segment(key), below_gap, "lower_bound_segment");
    expect_segment(set_.upper_bound_segment(key), above > 0 ? above - 1 : none, "upper_bound");
    expect_segment(set_.first(), 0, "first");
    expect_segment(set_.last(), count > 0 ? count - 1 : none, "last");
    expect_gap(set_.find_gap(key), inside ? none : above, "find_gap");
    expect_gap(set_.lower_bound_gap(key), above, "lower_bound_gap");
    expect_gap(set_.upper_bound_gap(key), below_gap, "upper_bound_gap");
    expect_gap(set_.first_gap(), 0, "first_gap");
    expect_gap(set_.last_gap(), count, "last_gap");

    const auto gap = set_.lower_bound_gap(key);
    expect_gap(gap.next(), above < count ? above + 1 : none, "next gap");
    expect_gap(gap.prev(), above > 0 ? above - 1 : none, "prev gap");
    expect_segment(gap.next_segment(), above, "next_segment");
    expect_segment(gap.prev_segment(), above > 0 ? above - 1 : none, "prev_segment");
    if (above < count) {
      const auto segment = gap.next_segment();
      expect_segment(segment.next(), above + 1, "next");
      expect_segment(segment.prev(), above > 0 ? above - 1 : none, "prev");
      expect_gap(segment.prev_gap(), above, "prev_gap");
      expect_gap(segment.next_gap(), above + 1, "next_gap");
    }
    size_t next = above + 1;
    while (next <= count && model_.gap(next).empty()) ++next;
    expect_gap(gap.next_non_empty(), next, "next_non_empty");
    size_t prev = above - 1;
    while (prev < count && model_.gap(prev).empty()) --prev;
    expect_gap(gap.prev_non_empty(), prev, "prev_non_empty");

    compare_ranges();
    if constexpr (Traits::kTrackGaps) compare_gap_searches(key, gap, above, below_gap);
  }

  void compare_ranges() {
    const FileRange range = pick_range();
    operation_ = "visit_range";
    uint64_t span = 0;
    std::vector<FileRange> expected, gaps, found;
    for (size_t i = 0; i <= model_.segments.size(); ++i) {
      const FileRange gap = model_.gap(i).intersect(range);
      if (!gap.empty()) gaps.push_back(gap);
      if (i == model_.segments.size()) break;
      const FileRange part = model_.segments[i].first.intersect(range);
      if (!part.empty()) expected.push_back(part);
      span += part.length();
    }
    expect(set_.visit_range(range, [&](FileRange part, const Value&) { found.push_back(part); }),
           "ended early");
    expect(found == expected, "other segments");
    expect(set_.span_of(range) == span, "span_of");
    expect(set_.is_empty_range(range) == (span == 0), "is_empty_range");
    found.clear();
    const auto visit_one = [&](FileRange part) {
      found.push_back(part);
      return false;
    };
    expect(set_.visit_gaps_in(range, visit_one) == gaps.empty(), "went on after false");
    found.clear();
    set_.visit_gaps_in(range, [&](FileRange part) { found.push_back(part); });
    expect(found == gaps, "other gaps");
  }

  // Whether some aligned start has room; written as a search, not as a formula.
  static bool fits(FileRange gap, uint64_t length, uint64_t alignment) {
    uint64_t start = gap.start;
    if (start % alignment != 0) {
      const uint64_t step = alignment - start % alignment;
      if (start > kEnd - step) return false;
      start += step;
    }
    return start <= gap.end && gap.end - start >= length;
  }

  void compare_gap_searches(uint64_t key, typename Set::GapIterator gap, size_t above,
                            size_t below_gap) {
    const size_t count = model_.segments.size();
    uint64_t length = shape_.unit * (1 + random_.below(shape_.length_max * 2));
    if (random_.one_in(6)) length = 1 + random_.below(shape_.key_space);
    if (random_.one_in(40)) length = kEnd - random_.below(shape_.key_space);
    if (random_.one_in(3)) {
      length = std::max<uint64_t>(model_.gap(random_.below(count + 1)).length(), 1);
    }
    const uint64_t alignments[] = {1, Traits::kGapAlignment, Traits::kGapAlignment * 4,
                                   Traits::kGapAlignment / 4, uint64_t{1} << random_.below(64)};
    for (const uint64_t alignment : alignments) {
      const auto up = [&](size_t i) {
        while (i <= count && !fits(model_.gap(i), length, alignment)) ++i;
        return i;
      };
      const auto down = [&](size_t i) {
        while (i <= count && !fits(model_.gap(i), length, alignment)) --i;
        return i;
      };
      operation_ = "large enough gaps";
      expect_gap(set_.first_large_enough_gap(length, alignment), up(0), "first");
      expect_gap(set_.last_large_enough_gap(length, alignment), down(count), "last");
      expect_gap(set_.lower_bound_large_enough_gap(key, length, alignment), up(above), "lower");
      expect_gap(set_.upper_bound_large_enough_gap(key, length, alignment), down(below_gap),
                 "upper");
      expect_gap(gap.next_large_enough_gap(length, alignment), up(above + 1), "next");
      expect_gap(gap.prev_large_enough_gap(length, alignment), down(above - 1), "prev");
    }
  }

  SegmentShape shape_;
  Random random_;
  Set set_;
  SegmentModel<Traits> model_;
  uint64_t step_ = 0;
  bool growing_ = true;
  const char* operation_ = "";
};

// Several kinds of values and keys, one after the other; `done` is told the name of each. Sets with three
// levels of nodes are seldom verified: their operations cost less, and they have far to grow.
template <class Done>
void compare_segment_sets(uint64_t operations, uint64_t tall_operations, uint64_t seed, Done done) {
  const auto compare = [&]<class Traits>(Traits, const char* name, SegmentShape shape) {
    try {
      const uint64_t steps = shape.verify_every > 1 ? tall_operations : operations;
      SegmentComparison<Traits>(shape, seed++).run(steps);
    } catch (const SegmentDifference& difference) {
      throw SegmentDifference(std::string(name) + ", " + difference.what());
    }
    done(name);
  };
  const SegmentShape crowded{300, 1, 8, 120, 1};
  const SegmentShape loose{4000, 1, 40, 300, 1};
  const SegmentShape pages{uint64_t{1} << 33, 4096, 700, 400, 1};
  const SegmentShape top{kEnd, 1, uint64_t{1} << 58, 60, 1};
  const SegmentShape tall{60000, 1, 6, 6000, 64};
  compare(SmallTraits(), "crowded", crowded);
  compare(SmallTraits(), "loose", loose);
  compare(UsageTraits(), "pages", pages);
  compare(UsageTraits(), "top", top);
  compare(SmallTraits(), "tall", tall);
  compare(OddTraits(), "odd merges", loose);
  compare(EmptyTraits(), "no values", loose);
  compare(EmptyTrackedTraits(), "no values, tracked", loose);
  compare(EmptyTrackedTraits(), "no values, tall", tall);
  compare(OddTraits(), "odd merges, crowded", crowded);
}

}  // namespace pgalloc::native_tests
