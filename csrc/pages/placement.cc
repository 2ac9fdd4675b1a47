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

std::optional<Place> find_bottom_up(const UsageSet& usage, const PlacementRequest& request) {
  const auto gap = usage.first_large_enough_gap(request.length, request.alignment);
  if (!gap.ok()) return std::nullopt;
  const auto start = lowest_start(gap.start(), std::min(gap.end(), request.capacity), request);
  if (!start) return std::nullopt;
  const FileRange range{*start, *start + request.length};
  return Place{range, grown_size(range.end, request), gap};
}

// Below the present end of the file: the highest place in the last gap that has one.
std::optional<Place> find_top_down_inside(const UsageSet& usage, const PlacementRequest& request) {
  // The trailing gap reaches beyond the file, so it alone is clipped.
  auto gap = usage.last_gap();
  const uint64_t clipped = std::min(gap.end(), request.file_size);
  auto start = highest_start(gap.start(), clipped, request);
  if (!start) {
    if (clipped < request.length) return std::nullopt;
    gap = gap.prev_large_enough_gap(request.length, request.alignment);
    if (!gap.ok()) return std::nullopt;
    start = highest_start(gap.start(), gap.end(), request);
    if (!start) return std::nullopt;
  }
  return Place{{*start, *start + request.length}, request.file_size, gap};
}

// Beyond it: double the file until the end of it has a place above everything in use.
std::optional<Place> find_top_down_grown(const UsageSet& usage, const PlacementRequest& request) {
  const auto lowest = lowest_start(usage.last_gap().start(), request.capacity, request);
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

}  // namespace

uint64_t default_alignment(uint64_t length) {
  return length >= kHugePageSize ? kHugePageSize : page_size();
}

std::optional<Place> find_place(const UsageSet& usage, const PlacementRequest& request) {
  if (request.direction == Direction::kBottomUp) return find_bottom_up(usage, request);
  if (auto place = find_top_down_inside(usage, request)) return place;
  return find_top_down_grown(usage, request);
}

}  // namespace pgalloc
