#include "pages/placement.h"

#include <algorithm>

namespace pgalloc {
namespace {

// The lowest aligned start in [low, high - length], if any.
std::optional<uint64_t> lowest_start(uint64_t low, uint64_t high, const PlacementRequest& request) {
  if (high < request.length || low > UINT64_MAX - (request.alignment - 1)) return std::nullopt;
  const uint64_t start = align_up(low, request.alignment);
  if (start > high - request.length) return std::nullopt;
  return start;
}

// The highest aligned start in [low, high - length], if any.
std::optional<uint64_t> highest_start(uint64_t low, uint64_t high,
                                      const PlacementRequest& request) {
  if (high < request.length) return std::nullopt;
  const uint64_t start = align_down(high - request.length, request.alignment);
  if (start < low) return std::nullopt;
  return start;
}

// The file grows by whole chunks, as far as the capacity lets it.
uint64_t grown_size(uint64_t end, const PlacementRequest& request) {
  if (end <= request.file_size) return request.file_size;
  const uint64_t whole_chunks =
      end > kMaxOffset - (kChunkSize - 1) ? request.capacity : align_up(end, kChunkSize);
  return std::min(whole_chunks, request.capacity);
}

using Gap = UsageSet::GapIterator;

// The lowest place within [low, high) that lies in this gap.
std::optional<Place> lowest_in(Gap gap, uint64_t low, uint64_t high,
                               const PlacementRequest& request) {
  const auto start = lowest_start(std::max(gap.start(), low), std::min(gap.end(), high), request);
  if (!start) return std::nullopt;
  const FileRange range{*start, *start + request.length};
  return Place{range, grown_size(range.end, request), gap};
}

// The highest such place.
std::optional<Place> highest_in(Gap gap, uint64_t low, uint64_t high,
                                const PlacementRequest& request) {
  const auto start = highest_start(std::max(gap.start(), low), std::min(gap.end(), high), request);
  if (!start) return std::nullopt;
  return Place{{*start, *start + request.length}, request.file_size, gap};
}

std::optional<Place> find_bottom_up(const UsageSet& usage, const PlacementRequest& request) {
  const Gap gap = usage.first_large_enough_gap(request.length, request.alignment);
  if (!gap.ok()) return std::nullopt;
  return lowest_in(gap, 0, request.capacity, request);
}

// Below the present end of the file: the highest place in the last gap that has one.
std::optional<Place> find_top_down_inside(const UsageSet& usage, const PlacementRequest& request) {
  // The trailing gap reaches beyond the file, so it alone is clipped.
  const Gap trailing = usage.last_gap();
  if (auto place = highest_in(trailing, 0, request.file_size, request)) return place;
  if (std::min(trailing.end(), request.file_size) < request.length) return std::nullopt;
  const Gap gap = trailing.prev_large_enough_gap(request.length, request.alignment);
  if (!gap.ok()) return std::nullopt;
  return highest_in(gap, 0, UINT64_MAX, request);
}

// Beyond it: double the file until the end of it has a place above everything in use, and above `above`.
std::optional<Place> find_top_down_grown(const UsageSet& usage, const PlacementRequest& request,
                                         uint64_t above) {
  const auto lowest =
      lowest_start(std::max(usage.last_gap().start(), above), request.capacity, request);
  if (!lowest) return std::nullopt;
  uint64_t size = request.file_size;
  while (size < request.capacity) {
    const uint64_t doubled = size == 0 ? kChunkSize : size * 2;  // cannot wrap: size < 2^63
    if (doubled > kMaxOffset) return std::nullopt;
    size = std::min(doubled, request.capacity);
    if (const auto start = highest_start(*lowest, size, request)) {
      return Place{{*start, *start + request.length}, size, usage.last_gap()};
    }
  }
  return std::nullopt;
}

// --- Within a window: some areas of the file -----------------------------------------------------

std::optional<Place> find_bottom_up(const UsageSet& usage, const PlacementRequest& request,
                                    FileRange window) {
  const uint64_t high = std::min(window.end, request.capacity);
  Gap gap = usage.lower_bound_large_enough_gap(window.start, request.length, request.alignment);
  for (; gap.ok() && gap.start() < high;
       gap = gap.next_large_enough_gap(request.length, request.alignment)) {
    if (auto place = lowest_in(gap, window.start, high, request)) return place;
  }
  return std::nullopt;
}

std::optional<Place> find_top_down_inside(const UsageSet& usage, const PlacementRequest& request,
                                          FileRange window) {
  const uint64_t high = std::min(window.end, request.file_size);
  if (high < window.start || high - window.start < request.length) return std::nullopt;
  Gap gap = usage.upper_bound_gap(high - 1);
  for (; gap.ok() && gap.end() > window.start;
       gap = gap.prev_large_enough_gap(request.length, request.alignment)) {
    if (auto place = highest_in(gap, window.start, high, request)) return place;
  }
  return std::nullopt;
}

// Whether an area may take pages of `size`; with `change`, an empty one of the other size too.
bool accepts(const UsageSet& usage, const Areas& areas, FileRange area, PageSize size,
             bool change) {
  return areas.at(area.start) == size || (change && usage.is_empty_range(area));
}

// Calls find(window) for each stretch of areas that accept pages of `size`, from the end where the search
// begins, until it finds a place. All beyond the end of the file counts as one area: it is small, and empty.
template <class Find>
std::optional<Place> search_stretches(const UsageSet& usage, const Areas& areas, PageSize size,
                                      bool change, const PlacementRequest& request, Find find) {
  const uint64_t length = areas.area_bytes();
  const uint64_t inside = (request.file_size + length - 1) / length;
  const uint64_t count = inside + (inside < areas.count() ? 1 : 0);
  std::optional<FileRange> stretch;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t index = request.direction == Direction::kBottomUp ? i : count - 1 - i;
    const uint64_t end = index < inside ? (index + 1) * length : areas.capacity();
    const FileRange area{index * length, std::min(end, areas.capacity())};
    if (accepts(usage, areas, area, size, change)) {
      if (!stretch) stretch = area;
      stretch = {std::min(stretch->start, area.start), std::max(stretch->end, area.end)};
    } else if (stretch) {
      if (const auto place = find(*stretch)) return place;
      stretch.reset();
    }
  }
  return stretch ? find(*stretch) : std::nullopt;
}

}  // namespace

uint64_t default_alignment(uint64_t length) {
  return length >= huge_page_size() ? huge_page_size() : page_size();
}

std::optional<Place> find_place(const UsageSet& usage, const PlacementRequest& request) {
  if (request.direction == Direction::kBottomUp) return find_bottom_up(usage, request);
  if (auto place = find_top_down_inside(usage, request)) return place;
  return find_top_down_grown(usage, request, 0);
}

std::optional<Place> find_place_in_areas(const UsageSet& usage, const Areas& areas, PageSize size,
                                         PlacementRequest request) {
  const uint64_t length = request.length;
  if (size == PageSize::kHuge) {
    if (length > UINT64_MAX - huge_page_size()) return std::nullopt;
    request.length = align_up(length, huge_page_size());
    request.alignment = std::max(request.alignment, huge_page_size());
  }
  std::optional<Place> place;
  const auto search = [&](bool change, auto find) {
    place = search_stretches(usage, areas, size, change, request, find);
    if (!place) return false;
    place->range.end = place->range.start + length;
    place->size = size;
    return true;
  };
  for (const bool change : {false, true}) {
    if (request.direction == Direction::kBottomUp) {
      if (search(change,
                 [&](FileRange window) { return find_bottom_up(usage, request, window); })) {
        break;
      }
      continue;
    }
    const auto inside = [&](FileRange window) {
      return find_top_down_inside(usage, request, window);
    };
    const auto grown = [&](FileRange window) {
      return window.end < request.capacity ? std::nullopt
                                           : find_top_down_grown(usage, request, window.start);
    };
    if (search(change, inside) || search(change, grown)) break;
  }
  return place;
}

}  // namespace pgalloc
