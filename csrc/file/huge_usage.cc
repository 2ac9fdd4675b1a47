#include "file/huge_usage.h"

#include <algorithm>
#include <array>

#include "backing/pagemap.h"

namespace pgalloc {

void HugeUsage::look(uint64_t stored_bytes, uint64_t changes) {
  std::vector<FileRange> runs;
  std::array<os::PageRegion, 64> buffer;
  Pagemap pagemap(chunks_);
  for (const FileRange& area : mapped_huge_areas()) {
    const bool known =
        pagemap.visit(area, os::kPageIsPresent | os::kPageIsHuge, buffer, [&](FileRange run) {
          if (!runs.empty() && runs.back().end == run.start) {
            runs.back().end = run.end;
          } else {
            runs.push_back(run);
          }
        });
    if (known) continue;
    runs.clear();
    break;
  }
  FileLock lock(state_);
  runs_ = std::move(runs);
  seen_changes_ = changes;
  seen_bytes_ = stored_bytes;
}

// A mapping is there chunk by chunk.
std::vector<FileRange> HugeUsage::mapped_huge_areas() const {
  std::vector<FileRange> parts;
  FileLock lock(state_);
  state_.pages.areas().visit({0, file_.size()}, [&](FileRange area, PageSize size) {
    if (size != PageSize::kHuge) return;
    while (!area.empty()) {
      const uint64_t end = std::min(area.end, align_down(area.start, kChunkSize) + kChunkSize);
      const FileRange part{area.start, end};
      if (chunks_.is_mapped(part)) parts.push_back(part);
      area.start = end;
    }
  });
  return parts;
}

uint64_t HugeUsage::bytes() const {
  uint64_t bytes = 0;
  for (const FileRange& run : runs_) {
    state_.pages.usage().visit_range(run, [&](FileRange part, const PageUse& use) {
      if (counts(use)) bytes += part.length();
    });
  }
  return bytes;
}

uint64_t HugeUsage::bytes_of(const PageSegment& segment) const {
  if (!counts(segment.use)) return 0;
  const FileRange range = segment.range;
  auto run = std::lower_bound(runs_.begin(), runs_.end(), range.start,
                              [](const FileRange& left, uint64_t at) { return left.end <= at; });
  uint64_t bytes = 0;
  for (; run != runs_.end() && run->start < range.end; ++run) {
    bytes += std::min(run->end, range.end) - std::max(run->start, range.start);
  }
  return bytes;
}

std::optional<std::string> HugeUsage::verify() const {
  uint64_t end = 0;
  for (const FileRange& run : runs_) {
    if (run.empty() || (run.start <= end && end > 0)) return "runs touch, or are out of order";
    end = run.end;
  }
  return {};
}

}  // namespace pgalloc
