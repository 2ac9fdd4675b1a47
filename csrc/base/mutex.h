// Purpose: the lock of the core, with its rank, and the condition variable that goes with it.
//
// Thread safety: everything here is for any thread.
//
// Invariants
//   1. state_ is 0 (free), 1 (held) or 2 (held, and a thread may be asleep on it).
//   2. A thread takes locks in strictly ascending rank. Debug builds check this on every lock().
//
// Why not std::mutex: the metadata lock is held for tens of nanoseconds by at most a few threads.
// Spinning for about that long before sleeping avoids two futex calls per collision with the
// reclaimer; pthread's adaptive kind is not reachable through std::mutex.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>

#include "base/check.h"
#include "base/thread_annotations.h"

namespace pgalloc {

// Lock order: a thread that holds a lock may take only locks with a higher rank.
enum class LockRank : uint8_t {
  kForks,        // one fork at a time
  kParks,        // stopping all threads of the core, and starting them again
  kBroker,       // what other processes hold of this one's files
  kImagePlan,    // what one save does next
  kImageOrder,   // the order in which its parts are written
  kImageSink,    // a stream that takes them
  kFileThreads,  // starting and ending the threads of files
  kGuard,        // what the guard knows of the limits, and who listens to it
  kRegistry,     // the list of live files
  kSeats,        // the list of seats
  kLinks,        // the list of links to owners
  kCaches,       // the list of caches
  kKeepers,      // who discards pages of one file by itself
  kCache,        // what one cache holds
  kScan,         // one commit scan at a time
  kThread,       // starting and stopping one background thread
  kMemoryFile,   // page metadata of one file
  kEvictables,   // evictable users of one file
  kChunkMap,     // mapping chunks of one file
  kLedger,       // one account
  kOwnerLink,    // what a peer gives back
};

namespace internal {
#ifndef NDEBUG
inline thread_local uint32_t held_ranks = 0;
inline void note_lock(LockRank rank) {
  const uint32_t bit = 1u << static_cast<uint32_t>(rank);
  PGALLOC_CHECK_OP(held_ranks, <, bit);
  held_ranks |= bit;
}
inline void note_unlock(LockRank rank) { held_ranks &= ~(1u << static_cast<uint32_t>(rank)); }
#else
inline void note_lock(LockRank) {}
inline void note_unlock(LockRank) {}
#endif
}  // namespace internal

class CAPABILITY("mutex") Mutex {
 public:
  constexpr explicit Mutex(LockRank rank) : rank_(rank) {}
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void lock() ACQUIRE() {
    internal::note_lock(rank_);
    lock_unranked();
  }
  void unlock() RELEASE() {
    unlock_unranked();
    internal::note_unlock(rank_);
  }
  // For a fork, which holds the locks of all files at once: they have one rank.
  void lock_unranked() ACQUIRE() {
    uint32_t expected = 0;
    if (!state_.compare_exchange_strong(expected, 1, std::memory_order_acquire)) lock_slow();
  }
  void unlock_unranked() RELEASE() {
    if (state_.exchange(0, std::memory_order_release) == 2) state_.notify_one();
  }

 private:
  [[gnu::noinline]] void lock_slow() {
    constexpr int kSpins = 100;  // about one critical section of the busiest lock
    for (int spin = 0; spin < kSpins; ++spin) {
      relax();
      uint32_t expected = 0;
      if (state_.load(std::memory_order_relaxed) == 0 &&
          state_.compare_exchange_weak(expected, 1, std::memory_order_acquire)) {
        return;
      }
    }
    while (state_.exchange(2, std::memory_order_acquire) != 0) state_.wait(2);
  }
  static void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  std::atomic<uint32_t> state_{0};
  const LockRank rank_;
};

class SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) ACQUIRE(mutex) : mutex_(mutex) { mutex_.lock(); }
  ~MutexLock() RELEASE() {
    if (held_) mutex_.unlock();
  }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

  // Lets go for a while: for the slow part in the middle of a longer operation.
  void unlock() RELEASE() {
    held_ = false;
    mutex_.unlock();
  }
  void lock() ACQUIRE() {
    mutex_.lock();
    held_ = true;
  }

 private:
  Mutex& mutex_;
  bool held_ = true;
};

// The reverse: lets go of a lock that is held, until the end of the scope.
class SCOPED_CAPABILITY MutexUnlock {
 public:
  explicit MutexUnlock(Mutex& mutex) RELEASE(mutex) : mutex_(mutex) { mutex_.unlock(); }
  ~MutexUnlock() RELEASE() { mutex_.lock(); }  // how the analysis spells it: the scope ends
  MutexUnlock(const MutexUnlock&) = delete;
  MutexUnlock& operator=(const MutexUnlock&) = delete;

 private:
  Mutex& mutex_;
};

class CondVar {
 public:
  void wait(Mutex& mutex) REQUIRES(mutex) NO_THREAD_SAFETY_ANALYSIS { condition_.wait(mutex); }
  // False when the deadline passed.
  bool wait_until(Mutex& mutex, std::chrono::steady_clock::time_point deadline)
      REQUIRES(mutex) NO_THREAD_SAFETY_ANALYSIS {
    return condition_.wait_until(mutex, deadline) == std::cv_status::no_timeout;
  }
  void notify_all() { condition_.notify_all(); }

 private:
  std::condition_variable_any condition_;
};

}  // namespace pgalloc
