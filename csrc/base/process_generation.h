// Purpose: tells a forked child from its parent. A child has the parent's memory but none of its
// threads, so an object that was made in another process must not take its locks: a thread that no
// longer exists may hold them. Such objects remember the generation they were made in.
//
// Thread safety: any thread.
#pragma once

#include <atomic>
#include <cstdint>

namespace pgalloc {

namespace internal {
inline constinit std::atomic<uint32_t> process_generation{0};
}

// Starts at 0; one more in every forked child.
inline uint32_t process_generation() {
  return internal::process_generation.load(std::memory_order_relaxed);
}

// In a forked child, before anything else.
inline void begin_process_generation() {
  internal::process_generation.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace pgalloc
