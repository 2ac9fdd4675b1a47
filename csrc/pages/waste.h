// Purpose: pages without references that are not free yet: those that wait to be given back to the
// kernel, and those that were, but wait for the rest of their huge page.
//
//            +--> small                                            --take--> (releasing)
//   add -----+--> whole    no page of the huge page has references --take--> (releasing)
//            +--> partial  others of the huge page have            --take--> (releasing) --+
//                    |                                                                     |
//                    |    <------ reclaim_again(), if they are in memory after all --+     |
//                    +--> whole, when the last of the others is added    <-- subreleased <-+
//
// A huge page becomes free only as a whole, so that huge allocations find whole ones. Until then, what is
// not needed of it goes back to the kernel page by page, which splits it: it is subreleased.
//
// Thread safety: externally synchronised.
//
// Errors: a std::bad_alloc leaves all as it was.
//
// Invariants, proved by verify()
//   1. The four sets are disjoint; only small_ has pages of small areas.
//   2. whole_ has whole huge pages; the others of huge areas have no huge page between them that is
//      covered.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/units.h"
#include "pages/areas.h"
#include "pages/pending_pages.h"
#include "segment/range_set.h"

namespace pgalloc {

class Waste {
 public:
  explicit Waste(const Areas& areas) : areas_(areas) {}

  // Those that wait to be given back.
  uint64_t bytes() const { return small_.span() + whole_.span() + partial_.span(); }
  // Those among them that others may use as they are, and the parts of huge pages, which they may not.
  uint64_t recyclable_bytes() const { return small_.span() + whole_.span(); }
  uint64_t part_bytes() const { return partial_.span(); }
  uint64_t subreleased_bytes() const { return subreleased_.span(); }
  size_t ranges() const { return small_.size() + whole_.size() + partial_.size(); }
  // Of `range`, what waits.
  uint64_t bytes_in(FileRange range) const {
    return small_.span_of(range) + whole_.span_of(range) + partial_.span_of(range);
  }
  size_t memory_bytes() const;

  // These pages have no references any more. REQUIRES: nothing in `range` is here.
  void add(FileRange range);
  // After this, add() of so many parts of `range` cannot fail.
  void reserve(FileRange range, size_t parts);
  // What goes next: small before whole, and the highest first. Pages whose contents are arriving stay.
  std::optional<FileRange> next(const PendingPages& pending) const;
  // The same of parts of huge pages, as far as they begin below `below`.
  std::optional<FileRange> next_part(const PendingPages& pending, uint64_t below) const;
  // A place for `length` bytes, which rests and waits whole: in one of the few ranges nearest to the end
  // of the file where the search begins.
  std::optional<FileRange> find(uint64_t length, uint64_t alignment, bool from_below, PageSize size,
                                const PendingPages& pending) const;
  // They are being given back, or used again. REQUIRES: next(), next_part() or find() has just returned a range that
  // contains `range`.
  void remove(FileRange range);
  // Whether pages that next_part() returned, or next(), are parts of huge pages.
  bool is_partial(FileRange range) const;
  // Those have been given back.
  void add_subreleased(FileRange range);
  // Of `range`, what has been given back but is in memory again, goes back once more. Calls visit(part) for
  // each part before that. Where that throws, or memory runs out, the parts before have gone back.
  template <class Visit>
  void reclaim_again(FileRange range, Visit visit) {
    std::vector<FileRange> parts;
    subreleased_.visit_range(range, [&](FileRange part, const auto&) { parts.push_back(part); });
    for (const FileRange& part : parts) {
      partial_.reserve(1);
      subreleased_.reserve(1);
      visit(part);
      partial_.insert(part, {});
      subreleased_.remove_range(part);
    }
  }
  // As if add_subreleased() had not been called. REQUIRES: it was the last call.
  void forget(FileRange range) { subreleased_.remove_range(range); }
  void clear();

  std::optional<std::string> verify() const;
  // Calls visit(range, given_back) for all of them, those that wait and those that are subreleased.
  template <class Visit>
  void visit(Visit visit) const {
    for (const RangeSet* set : {&small_, &whole_, &partial_, &subreleased_}) {
      for (auto range = set->first(); range.ok(); range = range.next()) {
        visit(range.range(), set == &subreleased_);
      }
    }
  }

 private:
  void reserve_huge(size_t parts);
  void add_huge(FileRange range);
  void settle(uint64_t huge_page);

  const Areas& areas_;
  RangeSet small_;
  RangeSet whole_;
  RangeSet partial_;
  RangeSet subreleased_;
};

}  // namespace pgalloc
