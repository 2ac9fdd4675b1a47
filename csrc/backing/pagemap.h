// Purpose: what this process's page tables say of the pages of a file (PAGEMAP_SCAN, Linux 6.7).
//
// Thread safety: an object is for one thread.
//
// It has a descriptor of /proc/self/pagemap from the first question on. That is this process's own: a
// forked child must not ask through it. So an object lives no longer than one call of its owner; to open
// and close takes 4 us.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "backing/chunk_map.h"
#include "base/units.h"
#include "os/syscalls.h"

namespace pgalloc {

class Pagemap {
 public:
  explicit Pagemap(const ChunkMap& chunks) : chunks_(chunks) {}
  ~Pagemap();
  Pagemap(const Pagemap&) = delete;
  Pagemap& operator=(const Pagemap&) = delete;

  // Whether the mapping and the process can answer.
  bool can_ask(FileRange range) { return chunks_.is_mapped(range) && open(); }
  // Calls visit(run) for the runs of `range` whose pages are of all these categories, in order; runs may
  // touch. `buffer` is for what the kernel says at once. False where the kernel, the mapping or the process
  // (no descriptor) cannot answer: then what was visited means nothing. REQUIRES: page-aligned, not empty.
  template <class Visit>
  bool visit(FileRange range, uint64_t categories, std::span<os::PageRegion> buffer, Visit visit) {
    if (!can_ask(range)) return false;
    const auto base = reinterpret_cast<uint64_t>(chunks_.base());
    uint64_t known = range.start;  // a scan that goes on may repeat what it has told
    for (uint64_t begin = range.start; begin < range.end;) {
      uint64_t walked = base + begin;
      const int count = scan(base + begin, base + range.end, categories, buffer, &walked);
      if (count < 0) return false;
      for (const os::PageRegion& region : buffer.first(static_cast<size_t>(count))) {
        const FileRange run{std::max(region.start - base, known), region.end - base};
        if (run.empty()) continue;
        known = run.end;
        visit(run);
      }
      begin = walked - base;
    }
    return true;
  }

 private:
  bool open();
  // How many regions there are in the buffer, and how far it got; -1 for a failure.
  int scan(uint64_t start, uint64_t end, uint64_t categories, std::span<os::PageRegion> buffer,
           uint64_t* walked);

  const ChunkMap& chunks_;
  int fd_ = -1;
  bool unusable_ = false;
};

}  // namespace pgalloc
