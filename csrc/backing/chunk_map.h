// Purpose: where the file's pages are in memory: one reserved address range, mapped chunk by chunk.
//
// Thread safety: is_mapped() and address() take no lock and run beside map() and growth (rows B11,
// E3). map(), advise() and seal() take the chunk-map lock.
//
// Invariants
//   1. base() .. base() + capacity() belongs to this object from construction to destruction, so
//      the address of a file offset never changes (row E4).
//   2. mapped_[i] goes from false to true once, after chunk i is mapped (release); a thread
//      that reads it as true (acquire) may touch the chunk. (But see revoke_in_child().)
//   3. Mappings outlive close(): they go with this object, which every view keeps alive.
//   4. base() is a multiple of the huge page, if there are such addresses. Where huge_ says so the kernel
//      may back the mapping with huge pages, elsewhere it must not (unless made without `advised`); it is
//      told as soon as the chunk is mapped.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>

#include "base/mutex.h"
#include "base/status.h"
#include "base/units.h"
#include "segment/range_set.h"

namespace pgalloc {

// Bytes that the next file reserves unless told otherwise, if the kernel does not refuse.
uint64_t default_capacity();

class ChunkMap {
 public:
  // Reserves addresses for `capacity` bytes. Without one: default_capacity(), halved while the kernel
  // refuses, so that many files fit one process.
  // Without `writable`, chunks are mapped for reading only; without `advised`, the kernel does as it likes
  // where it is not told otherwise.
  static Result<std::shared_ptr<ChunkMap>> reserve(std::optional<uint64_t> capacity,
                                                   bool writable = true, bool advised = true);
  ~ChunkMap();
  ChunkMap(const ChunkMap&) = delete;
  ChunkMap& operator=(const ChunkMap&) = delete;

  char* base() const { return base_; }
  uint64_t capacity() const { return capacity_; }
  char* address(uint64_t offset) const { return base_ + offset; }

  // REQUIRES: range is not empty and inside the capacity.
  bool is_mapped(FileRange range) const {
    const uint64_t last = (range.end - 1) / kChunkSize;
    for (uint64_t chunk = range.start / kChunkSize; chunk <= last; ++chunk) {
      if (!mapped_[chunk].load(std::memory_order_acquire)) return false;
    }
    return true;
  }
  // Maps the chunks of `range` that are not mapped yet. Fails with kClosed after seal().
  Status map(int fd, FileRange range) EXCLUDES(mu_);
  // Whether the kernel may back these pages with huge ones: the next time they are touched while nothing is
  // there, and by its own thread (khugepaged) at any time. Best effort: without memory for it, or where the
  // kernel does not know huge pages, things stay as they are. REQUIRES: whole huge pages.
  void advise(FileRange range, bool huge) EXCLUDES(mu_);
  // Whether it is advised so now.
  bool allows_huge(uint64_t offset) EXCLUDES(mu_);
  // Whether anything ever was.
  bool ever_huge() const { return ever_huge_.load(std::memory_order_relaxed); }
  // No chunk is mapped from here on: the descriptor is about to be closed.
  void seal() EXCLUDES(mu_);
  // In a forked child that keeps no pages from being given to others: what is mapped here cannot be
  // touched any more (SIGSEGV), rather than show what belongs to others by then.
  // REQUIRES: the child has only this thread yet.
  void revoke_in_child();
  // In a forked child that goes on using its parent's mapping, from here on without huge pages of its own.
  // REQUIRES: the child has only this thread yet.
  void reset_after_fork();

 private:
  ChunkMap(char* base, uint64_t capacity, bool writable, bool advised);
  Status map_chunk(int fd, uint64_t chunk) REQUIRES(mu_);
  void tell_kernel(FileRange range, bool huge) REQUIRES(mu_);

  char* const base_;
  const uint64_t capacity_;
  const bool writable_;
  const bool advised_;
  std::unique_ptr<std::atomic<bool>[]> mapped_;
  Mutex mu_{LockRank::kChunkMap};
  bool sealed_ GUARDED_BY(mu_) = false;
  RangeSet huge_ GUARDED_BY(mu_);
  std::atomic<bool> ever_huge_{false};
};

}  // namespace pgalloc
