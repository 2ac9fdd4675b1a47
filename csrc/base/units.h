// Purpose: the sizes everything is counted in, and the range type the core and the binding share.
//
// Thread safety: values only.
//
// The page size is the kernel's, read once (64 KiB kernels exist on aarch64); the huge page follows from
// it. The chunk is a convention of this library, the unit of growing and mapping.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <limits>

namespace pgalloc {

inline constexpr uint64_t kChunkSize = uint64_t{1} << 30;

// The largest file offset the kernel can express (off_t).
inline constexpr uint64_t kMaxOffset = uint64_t{std::numeric_limits<int64_t>::max()};

// What one entry of the second level of page tables maps: as many pages as a page has 8-byte entries.
// 2 MiB with pages of 4 KiB, 32 MiB with 16 KiB, 512 MiB with 64 KiB.
constexpr uint64_t huge_page_size_of(uint64_t page) { return page * (page / 8); }
// For what must be known when it is compiled, to be fast, and is only slower where it is not so.
inline constexpr uint64_t kUsualHugePageSize = huge_page_size_of(4096);

namespace internal {
inline const uint64_t page_size = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
inline const uint64_t huge_page_size = huge_page_size_of(page_size);
}  // namespace internal
// Not for static initialisers of files that do not include this.
inline uint64_t page_size() { return internal::page_size; }
inline uint64_t huge_page_size() { return internal::huge_page_size; }

constexpr bool is_aligned(uint64_t value, uint64_t alignment) {
  return (value & (alignment - 1)) == 0;
}
constexpr uint64_t align_down(uint64_t value, uint64_t alignment) {
  return value & ~(alignment - 1);
}
// REQUIRES: value <= UINT64_MAX - (alignment - 1).
constexpr uint64_t align_up(uint64_t value, uint64_t alignment) {
  return align_down(value + alignment - 1, alignment);
}

// A half-open range [start, end) of bytes. Well-formed iff start <= end.
struct FileRange {
  uint64_t start = 0;
  uint64_t end = 0;

  constexpr uint64_t length() const { return end - start; }
  constexpr bool empty() const { return start >= end; }
  constexpr bool contains(uint64_t offset) const { return start <= offset && offset < end; }
  constexpr bool overlaps(const FileRange& other) const {
    return start < other.end && other.start < end;
  }
  constexpr bool is_superset_of(const FileRange& other) const {
    return start <= other.start && other.end <= end;
  }
  // The common part; an empty range when there is none.
  constexpr FileRange intersect(const FileRange& other) const {
    FileRange common{start > other.start ? start : other.start, end < other.end ? end : other.end};
    if (common.end < common.start) common.end = common.start;
    return common;
  }
  friend constexpr bool operator==(const FileRange&, const FileRange&) = default;
};

// The huge pages that lie wholly inside; empty if none does.
inline FileRange whole_huge_pages_in(FileRange range) {
  const uint64_t start = align_up(range.start, huge_page_size());
  const uint64_t end = align_down(range.end, huge_page_size());
  return {start, start < end ? end : start};
}

}  // namespace pgalloc
