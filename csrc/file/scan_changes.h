// Purpose: which pages changed while a commit scan looked at them without the lock (row H3): those
// whose contents or owner became others. What the scan found about them is void.
//
// Thread safety: externally synchronised (the file's lock).
//
// Invariants
//   1. Between scans nothing is recorded, so changes cost nothing then.
//   2. Within a batch every changed page is recorded; beyond kRangesMax ranges, all pages are.
#pragma once

#include <cstdint>

#include "base/units.h"
#include "segment/range_set.h"

namespace pgalloc {

class ScanChanges {
 public:
  // Something became allocated: what a scan found before no longer says everything.
  void count() { ++number_; }
  // The contents or the owner of these pages changed.
  void note(FileRange range) {
    ++number_;
    if (scanning_) record(range);
  }
  // How often one of the two happened.
  uint64_t number() const { return number_; }

  void begin_batch() {
    ranges_.clear();
    scanning_ = true;
  }
  void end_scan() {
    ranges_.clear();
    scanning_ = false;
  }
  // Calls visit(part) for each part of `range` that has not changed since begin_batch().
  template <class Visit>
  void visit_unchanged(FileRange range, Visit visit) const {
    ranges_.visit_gaps_in(range, visit);
  }

 private:
  static constexpr size_t kRangesMax = 65536;

  void record(FileRange range) {
    ranges_.remove_range(range);
    if (ranges_.size() >= kRangesMax) {
      ranges_.clear();
      range = {0, kMaxOffset};
    }
    ranges_.insert(range, {});
  }

  RangeSet ranges_;
  uint64_t number_ = 0;
  bool scanning_ = false;
};

}  // namespace pgalloc
