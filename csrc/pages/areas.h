// Purpose: which parts of the file are for huge pages. The file is cut into areas of one length; each
// is for pages of one size, so that the kernel can be advised area by area.
//
// Thread safety: externally synchronised (the file's lock).
//
// An area is for small pages until a huge allocation takes it, and may change sides whenever no page in
// it is used or waits to be reclaimed: see find_place_in_areas().
//
// Invariants
//   1. Every page of a huge allocation lies in a huge area, at whole huge pages.
//   2. huge_ is the number of huge areas.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/units.h"

namespace pgalloc {

enum class PageSize : uint8_t { kSmall, kHuge };

class Areas {
 public:
  explicit Areas(uint64_t capacity);

  // A chunk; less where the capacity has only a few chunks, so that both sizes have a place in it.
  uint64_t area_bytes() const { return area_bytes_; }
  uint64_t capacity() const { return capacity_; }
  uint64_t count() const { return capacity_ / area_bytes_ + (capacity_ % area_bytes_ > 0 ? 1 : 0); }
  bool has_huge() const { return huge_ > 0; }
  PageSize at(uint64_t offset) const {
    return has_huge() && huge_areas_[offset / area_bytes_] ? PageSize::kHuge : PageSize::kSmall;
  }
  // The areas that `range` reaches into, as one range.
  FileRange around(FileRange range) const;
  // Whether they are all for pages of this size.
  bool are_all(FileRange range, PageSize size) const;
  // Calls visit(part, size) for the parts of `range` that lie in areas for pages of one size, in order.
  template <class Visit>
  void visit(FileRange range, Visit visit) const {
    while (!range.empty()) {
      const PageSize size = at(range.start);
      uint64_t end = has_huge() ? align_down(range.start, area_bytes_) + area_bytes_ : range.end;
      while (end < range.end && at(end) == size) end += area_bytes_;
      const FileRange part{range.start, std::min(end, range.end)};
      visit(part, size);
      range.start = part.end;
    }
  }
  // Those change sides. REQUIRES: nothing in those that are for the other size is allocated.
  void set(FileRange range, PageSize size);
  void clear();

 private:
  const uint64_t capacity_;
  const uint64_t area_bytes_;
  uint64_t huge_ = 0;
  std::vector<bool> huge_areas_;  // empty as long as no area was huge
};

}  // namespace pgalloc
