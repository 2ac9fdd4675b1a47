#include "pages/areas.h"

#include <algorithm>
#include <bit>

namespace pgalloc {
namespace {

constexpr uint64_t kAreasMin = 16;

}  // namespace

Areas::Areas(uint64_t capacity)
    : capacity_(capacity),
      area_bytes_(std::clamp(std::bit_floor(capacity / kAreasMin), huge_page_size(),
                             std::max(kChunkSize, huge_page_size()))) {}

FileRange Areas::around(FileRange range) const {
  return {align_down(range.start, area_bytes_),
          std::min(align_up(range.end, area_bytes_), capacity_)};
}

bool Areas::are_all(FileRange range, PageSize size) const {
  if (!has_huge()) return size == PageSize::kSmall;
  for (uint64_t start = range.start; start < range.end; start += area_bytes_) {
    if (at(start) != size) return false;
  }
  return at(range.end - 1) == size;
}

void Areas::set(FileRange range, PageSize size) {
  if (are_all(range, size)) return;
  if (huge_areas_.empty()) huge_areas_.resize(count());
  for (uint64_t area = range.start / area_bytes_; area <= (range.end - 1) / area_bytes_; ++area) {
    const bool huge = size == PageSize::kHuge;
    if (huge_areas_[area] == huge) continue;
    huge_areas_[area] = huge;
    huge ? ++huge_ : --huge_;
  }
}

void Areas::clear() {
  huge_ = 0;
  huge_areas_.clear();
}

}  // namespace pgalloc
