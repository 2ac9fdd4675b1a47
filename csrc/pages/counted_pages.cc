#include "pages/counted_pages.h"

#include <algorithm>

namespace pgalloc {

bool CountedPages::is_unique(FileRange range) const {
  uint64_t bytes = 0;
  set_.visit_range(range, [&](FileRange part, const uint32_t& count) {
    if (count != 1) return false;
    bytes += part.length();
    return true;
  });
  return bytes == range.length();
}

bool CountedPages::add(FileRange range) {
  if (set_.try_insert(range, 1)) return true;
  std::vector<FileRange> gaps;
  set_.visit_gaps_in(range, [&](FileRange gap) { gaps.push_back(gap); });
  const bool fits =
      set_.visit_range(range, [](FileRange, const uint32_t& count) { return count < UINT32_MAX; });
  if (!fits) return false;
  try {
    for (const FileRange& gap : gaps) set_.insert(gap, 0);
    set_.mutate_range(range, [](FileRange, uint32_t& count) { ++count; });
  } catch (...) {
    drop_empty(range);
    throw;
  }
  return true;
}

bool CountedPages::remove(FileRange range, std::vector<FileRange>* gone) {
  if (!has(range)) return false;
  take_away(range, [](uint32_t count) { return count - 1; }, gone);
  return true;
}

void CountedPages::limit(FileRange range, uint32_t count) {
  take_away(range, [&](uint32_t old) { return std::min(old, count); }, nullptr);
}

template <class Change>
void CountedPages::take_away(FileRange range, Change change, std::vector<FileRange>* gone) {
  std::vector<FileRange> empty;  // first: after the change nothing may fail
  if (gone != nullptr) {
    set_.visit_range(range, [&](FileRange part, const uint32_t& count) {
      if (change(count) == 0) empty.push_back(part);
    });
  }
  set_.mutate_range(range, [&](FileRange, uint32_t& count) { count = change(count); });
  for (uint64_t from = range.start; from < range.end;) {
    const auto segment = set_.lower_bound_segment(from);
    if (!segment.ok() || segment.start() >= range.end) break;
    const FileRange part = segment.range();
    if (segment.value() == 0) set_.remove_range(part);
    from = part.end;
  }
  if (gone != nullptr) *gone = std::move(empty);
}

void CountedPages::drop_empty(FileRange range) {
  take_away(range, [](uint32_t count) { return count; }, nullptr);
}

}  // namespace pgalloc
