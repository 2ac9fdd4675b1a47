// Purpose: what concerns all MemoryFiles of a process together: the sum of their accounts, and
// getting across fork().
//
// Thread safety: every function may be called from any thread.
//
// A forked child has the parent's memory but none of its threads, and its files share their pages
// with the parent's. So a file belongs to the process that made it: each remembers the generation
// it was made in, fork() raises the child's generation, and whoever finds them different keeps his
// hands off the metadata, locks included (a thread that no longer exists may hold them).
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

#include "core/ledger.h"

namespace pgalloc {

class MemoryFile;

namespace internal {
extern std::atomic<uint32_t> process_generation;
}

// Starts at 0; one more in every forked child.
inline uint32_t process_generation() {
  return internal::process_generation.load(std::memory_order_relaxed);
}

class LiveFiles {
 public:
  // Starts the file's background thread too. On failure the file is not added.
  static Status add(MemoryFile* file);
  static void remove(MemoryFile* file);
  // Has `count` threads load what is pending in the file.
  static Status start_loaders(MemoryFile* file, unsigned count);

  // Stops the background threads of all files, and starts them again. Calls nest: several threads
  // may be forking. Between the two, new files get no thread.
  static void park_threads();
  static void resume_threads();

  // Discards unpinned allocations of all files, those first that were unpinned first, until
  // `bytes_max` are back with the kernel, or the deadline has passed, or it is no use.
  struct Discarded {
    uint64_t given_back = 0;
    bool exhausted = false;  // nothing is left that can go
    bool fruitless = false;  // what went lately had no pages
    bool no_use() const { return exhausted || fruitless; }
  };
  static Discarded discard(uint64_t bytes_max, std::chrono::steady_clock::time_point deadline);
  // As MemoryFile::discard_leftovers(), in all files.
  static uint64_t discard_leftovers(uint64_t bytes_max, bool waiting);
  // Whether any page of any file is unpinned.
  static bool any_unpinned();
  // Begins the evictions of every file whose users are to be asked under pressure (row A4).
  static void start_evictions();
  // Gives freed pages the time to get back to the kernel.
  static void wait_for_reclaim(std::chrono::steady_clock::time_point deadline);

  // The account of this process: its files, and what was booked by hand.
  static LedgerSnapshot account();
  static Ledger& booked_by_hand();
};

}  // namespace pgalloc
