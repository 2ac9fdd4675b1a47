#include "core/unadopted.h"

#include <algorithm>
#include <vector>

namespace pgalloc {

bool Unadopted::adopt(FileRange range) {
  if (set_.span_of(range) != range.length()) return false;
  set_.mutate_range(range, [](FileRange, uint32_t& count) { --count; });
  drop_empty(range);
  return true;
}

void Unadopted::limit(FileRange range, uint32_t refs) {
  set_.mutate_range(range, [&](FileRange, uint32_t& count) { count = std::min(count, refs); });
  drop_empty(range);
}

void Unadopted::drop_empty(FileRange range) {
  std::vector<FileRange> empty;
  set_.visit_range(range, [&](FileRange part, const uint32_t& count) {
    if (count == 0) empty.push_back(part);
  });
  for (const FileRange& part : empty) set_.remove_range(part);
}

}  // namespace pgalloc
