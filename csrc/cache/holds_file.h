// Purpose: the memory in which one process says what it holds of a cache (holds.h), counts its look-ups, and puts values that
// are to go into the cache. The owner of the cache makes it; both have it mapped, and the process writes it.
//
// Thread safety: any thread. The owner checks what it reads, for the process may write anything there: it can keep values
// from being discarded and falsify the counts of its look-ups, no more.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/status.h"
#include "cache/holds.h"
#include "cache/shared_file.h"
#include "cache/shared_memory.h"

namespace pgalloc::cache {

class HoldsFile {
 public:
  static Result<HoldsFile> create(uint64_t holder_count);
  static Result<HoldsFile> map(os::Descriptor file, uint64_t holder_count);

  Holds<SharedMemory> holds() const;
  const SharedFile& file() const { return file_; }
  void close_descriptor() { file_.close_descriptor(); }
  // What another one says, of these holders: in a file that no process writes yet.
  void copy_from(const HoldsFile& other, uint64_t holder_count);

  // Where values are put, for the owner to copy: it may change while it is read.
  static constexpr uint64_t kValueBytes = uint64_t{4} << 20;
  char* value() const;

  void count_hit() const { counts()->hits.fetch_add(1, std::memory_order_relaxed); }
  void count_miss() const { counts()->misses.fetch_add(1, std::memory_order_relaxed); }
  uint64_t hits() const { return counts()->hits.load(std::memory_order_relaxed); }
  uint64_t misses() const { return counts()->misses.load(std::memory_order_relaxed); }

 private:
  struct Counts {
    SharedMemory::Atomic<uint64_t> hits;
    SharedMemory::Atomic<uint64_t> misses;
  };
  HoldsFile(SharedFile file, uint64_t holder_count)
      : file_(std::move(file)), holder_count_(holder_count) {}
  Counts* counts() const { return reinterpret_cast<Counts*>(file_.data()); }
  Holds<SharedMemory>::Word* words() const;

  SharedFile file_;
  uint64_t holder_count_;
};

}  // namespace pgalloc::cache
