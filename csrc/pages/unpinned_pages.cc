#include "pages/unpinned_pages.h"

#include <vector>

namespace pgalloc {

using Value = UnpinnedTraits::Value;

void UnpinnedPages::add(FileRange range) {
  if (set_.try_insert(range, {1, 0})) return;
  std::vector<FileRange> gaps;
  set_.visit_gaps_in(range, [&](FileRange gap) { gaps.push_back(gap); });
  set_.mutate_range(range, [](FileRange, Value& value) { ++value.handles; });
  for (const FileRange& gap : gaps) set_.insert(gap, {1, 0});
}

bool UnpinnedPages::remove(FileRange range, uint64_t since) {
  bool intact = true;
  const auto first = set_.find(range.start);
  if (first.ok() && first.end() >= range.end && first.value().handles == 1) {
    intact = first.value().discarded_at <= since;
    set_.remove_range(range);
    return intact;
  }
  std::vector<FileRange> last_handles;
  set_.mutate_range(range, [&](FileRange part, Value& value) {
    if (value.discarded_at > since) intact = false;
    if (value.handles == 1) {
      last_handles.push_back(part);
    } else {
      --value.handles;
    }
  });
  for (const FileRange& part : last_handles) set_.remove_range(part);
  return intact;
}

bool UnpinnedPages::has(FileRange range, uint32_t handles) const {
  uint64_t bytes = 0;
  set_.visit_range(range, [&](FileRange part, const Value& value) {
    if (value.handles < handles) return false;
    bytes += part.length();
    return true;
  });
  return bytes == range.length();
}

void UnpinnedPages::mark_discarded(FileRange range) {
  set_.mutate_range(range, [&](FileRange, Value& value) { value.discarded_at = now_; });
}

}  // namespace pgalloc
