// Purpose: the memory that an index lies in, as a policy: here that of the machine. Tests have another one, in which
// every order of events is tried (tests/native/explorer.h).
//
// Thread safety: any thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace pgalloc::cache {

struct SharedMemory {
  template <class T>
  using Atomic = std::atomic<T>;
  static_assert(std::atomic<uint64_t>::is_always_lock_free,
                "other processes have no locks of ours");
  static_assert(std::atomic<uint32_t>::is_always_lock_free);

  static constexpr size_t kSlotsOfBucket = 15;  // with `passed` a cache line

  static void fence(std::memory_order order) { std::atomic_thread_fence(order); }
};

}  // namespace pgalloc::cache
