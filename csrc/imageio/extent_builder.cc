#include "imageio/extent_builder.h"

#include <errno.h>
#include <fcntl.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "os/syscalls.h"
#include "os/transfer.h"

namespace pgalloc {

using os::sys;

namespace {

// Read, looked at and moved while it is in the processor's cache.
constexpr size_t kBlock = size_t{256} << 10;

// Looking for the next run of data costs about as much as reading three pages of a hole. After so
// many runs in one extent, the rest of it is read as it comes.
constexpr int kSeeksMax = 16;

// memcmp is the machine's fastest way of comparing, and stops at the first difference.
bool is_zero(const char* page, size_t size) {
  constexpr size_t kStep = 16;
  static constexpr char kZeros[kStep] = {};
  return std::memcmp(page, kZeros, kStep) == 0 &&
         std::memcmp(page, page + kStep, size - kStep) == 0;
}

}  // namespace

Status ExtentBuilder::build(std::span<const FileRange> parts, Extent& extent) {
  extent.head = {};
  extent.zero_pages = 0;
  extent.head.range = {parts.front().start, parts.back().end};
  extent.buffer.reserve(page_size() + extent.head.range.length());
  for (const FileRange& part : parts) {
    if (!keep_zeros_) {
      PGALLOC_RETURN_IF_ERROR(add_stored(part, extent));
      continue;
    }
    std::vector<FileRange> runs;
    PGALLOC_RETURN_IF_ERROR(probe_.find_runs(part, runs));
    for (const FileRange& run : runs) PGALLOC_RETURN_IF_ERROR(add_run(run, extent));
  }
  return {};
}

Status ExtentBuilder::add_stored(FileRange range, Extent& extent) {
  for (int seeks = 0; seeks < kSeeksMax && !range.empty(); ++seeks) {
    const off_t data = sys().lseek(file_.fd(), static_cast<off_t>(range.start), SEEK_DATA);
    if (data < 0 && errno == ENXIO) return {};
    if (data < 0) break;  // no way to ask here: read everything
    range.start = std::max(range.start, align_down(static_cast<uint64_t>(data), page_size()));
    if (range.empty()) return {};
    const off_t hole = sys().lseek(file_.fd(), static_cast<off_t>(range.start), SEEK_HOLE);
    if (hole < 0) break;
    const uint64_t end =
        std::clamp(align_up(static_cast<uint64_t>(hole), page_size()), range.start, range.end);
    PGALLOC_RETURN_IF_ERROR(add_run({range.start, end}, extent));
    range.start = end;
  }
  return range.empty() ? Status() : add_mixed(range, extent);
}

Status ExtentBuilder::add_mixed(FileRange range, Extent& extent) {
  const uint64_t zero_pages_before = extent.zero_pages;
  const size_t stored_before = extent.head.map.count();
  PGALLOC_RETURN_IF_ERROR(add_run(range, extent));
  // Holes were read as zeros, too; they are not pages that were left out.
  if (const auto committed = probe_.count(range)) {
    const uint64_t stored = extent.head.map.count() - stored_before;
    extent.zero_pages = zero_pages_before + std::max(*committed / page_size(), stored) - stored;
  }
  return {};
}

Status ExtentBuilder::add_run(FileRange run, Extent& extent) {
  const uint64_t page_bytes = page_size();
  image::PageMap& map = extent.head.map;
  char* out = extent.buffer.data() + page_bytes + map.count() * page_bytes;
  for (uint64_t offset = run.start; offset < run.end;) {
    const size_t size = std::min<uint64_t>(kBlock, run.end - offset);
    Result<size_t> count = os::read_at(file_.fd(), offset, out, size);
    if (!count.ok()) return std::move(count).status();
    // The file was made shorter meanwhile.
    if (*count < size) return Status::system_error(EIO, "pread");
    const char* block = out;
    for (size_t at = 0; at < size; at += page_bytes) {
      const char* page = block + at;
      if (!keep_zeros_ && is_zero(page, page_bytes)) {
        ++extent.zero_pages;
        continue;
      }
      if (out != page) std::memmove(out, page, page_bytes);
      map.set((offset + at - extent.head.range.start) / page_bytes);
      out += page_bytes;
    }
    offset += size;
  }
  return {};
}

}  // namespace pgalloc
