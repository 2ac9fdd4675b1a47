// Purpose: what the components of one MemoryFile share: its lock, its pages, its counts, and whether
// it is open. Nothing else connects them.
//
// Thread safety: `mu` guards everything marked so. It is held for searching and marking only: never
// across a system call that can take long, never across a callback.
//
// Invariants
//   1. `operations` counts the calls that use the descriptor without the lock; close() waits for them.
//   2. `gate` is 0 only while the file is open and no page is pending: then map() needs no lock.
//
// The components reach the lock through different objects, which clang's analysis cannot tell to be
// the same; so for the analysis, `file_lock` stands for the lock of any file.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "file/scan_changes.h"
#include "pages/ledger.h"
#include "pages/page_states.h"

namespace pgalloc {

// Counts and bytes since construction, but where it says "now".
struct MemoryFileStats {
  uint64_t allocations = 0;
  uint64_t allocated_bytes = 0;
  uint64_t freed_bytes = 0;     // reached 0 references
  uint64_t recycled_bytes = 0;  // went from waste straight to a new owner
  uint64_t huge_allocations = 0;
  uint64_t huge_fallback_bytes = 0;  // of whole huge pages that were wanted, and came as small ones
  uint64_t punches = 0;
  uint64_t punched_bytes = 0;
  uint64_t decommitted_bytes = 0;
  uint64_t punch_failures = 0;
  uint64_t quarantined_bytes = 0;  // could be neither punched nor zeroed; Python: lost_bytes
  uint64_t discards = 0;           // of unpinned allocations
  uint64_t discarded_bytes = 0;
  uint64_t unpinned_bytes = 0;  // now, from stats(): of pages that may be discarded, or have been
  uint64_t waiting_bytes = 0;   // now, from stats(): of freed pages that have not gone back yet
  uint64_t scans = 0;
  uint64_t voided_results = 0;  // scan results dropped because their pages changed meanwhile
};

class CAPABILITY("file lock") FileLockRole {};
inline constexpr FileLockRole file_lock;

struct FileState {
  explicit FileState(uint64_t capacity = kMaxOffset, bool accounting = true)
      : accounting(accounting), pages(ledger, capacity, accounting) {}

  static constexpr uint8_t kClosed = 1;
  static constexpr uint8_t kIncomplete = 2;  // pages are pending

  bool closed() const { return (gate.load(std::memory_order_acquire) & kClosed) != 0; }
  bool incomplete() const { return (gate.load(std::memory_order_acquire) & kIncomplete) != 0; }
  Status check_open() const {
    if (!closed()) return {};
    return Status::error(ErrorCode::kClosed, "the MemoryFile is closed");
  }

  // For what goes wrong where no caller can be told: kept until they are taken.
  void warn(std::string message) REQUIRES(file_lock) {
    constexpr size_t kWarningsMax = 100;
    if (warnings.size() < kWarningsMax) warnings.push_back(std::move(message));
  }

  void wait(CondVar& condition) const REQUIRES(file_lock) NO_THREAD_SAFETY_ANALYSIS {
    condition.wait(mu);
  }
  // False when the deadline passed.
  bool wait_until(CondVar& condition, std::chrono::steady_clock::time_point deadline) const
      REQUIRES(file_lock) NO_THREAD_SAFETY_ANALYSIS {
    return condition.wait_until(mu, deadline);
  }

  const bool accounting;  // else nothing is booked
  Ledger ledger;
  std::atomic<uint8_t> gate{0};
  mutable Mutex mu{LockRank::kMemoryFile};
  PageStates pages GUARDED_BY(file_lock);
  MemoryFileStats stats GUARDED_BY(file_lock);
  ScanChanges changes GUARDED_BY(file_lock);
  std::vector<std::string> warnings GUARDED_BY(file_lock);
  uint64_t operations GUARDED_BY(file_lock) = 0;
  CondVar operations_ended;
};

class SCOPED_CAPABILITY FileLock {
 public:
  explicit FileLock(const FileState& state) ACQUIRE(file_lock) NO_THREAD_SAFETY_ANALYSIS
      : mu_(state.mu) {
    mu_.lock();
  }
  ~FileLock() RELEASE() NO_THREAD_SAFETY_ANALYSIS {
    if (held_) mu_.unlock();
  }
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

  // Lets go for a while: for the slow part in the middle of a longer operation.
  void unlock() RELEASE() NO_THREAD_SAFETY_ANALYSIS {
    held_ = false;
    mu_.unlock();
  }
  void lock() ACQUIRE() NO_THREAD_SAFETY_ANALYSIS {
    mu_.lock();
    held_ = true;
  }

 private:
  Mutex& mu_;
  bool held_ = true;
};

}  // namespace pgalloc
