// Purpose: where an allocation goes: a pure search over the usage set (rows B4 to B9), and over the areas
// for pages of its size.
//
// Thread safety: externally synchronised; the set is only read.
#pragma once

#include <cstdint>
#include <optional>

#include "base/units.h"
#include "pages/areas.h"
#include "pages/page_use.h"

namespace pgalloc {

enum class Direction : uint8_t { kBottomUp = 0, kTopDown = 1 };

struct PlacementRequest {
  uint64_t length = 0;     // > 0
  uint64_t alignment = 0;  // a power of two
  Direction direction = Direction::kBottomUp;
  uint64_t file_size = 0;
  uint64_t capacity = kMaxOffset;  // no byte at or beyond it is handed out
};

struct Place {
  FileRange range;
  uint64_t file_size = 0;     // the size the file must have for it; never less than the request's
  UsageSet::GapIterator gap;  // where in the set `range` lies
  PageSize size = PageSize::kSmall;
};

// Row B4: huge-page alignment for lengths that can hold a huge page, else page alignment.
uint64_t default_alignment(uint64_t length);

// Nothing when there is no place below `capacity`.
std::optional<Place> find_place(const UsageSet& usage, const PlacementRequest& request);

// The same within areas for pages of one size; in huge ones for whole huge pages, of which the range has
// as much as is asked for. Only if these have no place, areas of the other size in which nothing is
// allocated count as well: the caller changes them. REQUIRES: beyond the end of the file all are small.
std::optional<Place> find_place_in_areas(const UsageSet& usage, const Areas& areas, PageSize size,
                                         PlacementRequest request);

}  // namespace pgalloc
