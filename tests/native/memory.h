// Purpose: memory that runs out when a test says so, or shows who writes to what was freed.
//
// Thread safety: each thread runs out for itself; what is freed is kept for all of them.
#pragma once

#include <cstdint>
#include <new>

namespace pgalloc::native_tests {

// So many allocations of this thread succeed, and then one fails, or all of them. Negative: none fails.
inline thread_local int64_t allocations_left = -1;
inline thread_local bool all_fail = false;
inline thread_local bool all_fail_then = false;  // once one has failed

// From here on nothing that is freed is used again; and whether nothing was written to since.
void keep_freed_memory();
bool freed_memory_is_untouched();

// Whether this allocation fails.
inline bool memory_runs_out() {
  if (all_fail) return true;
  if (allocations_left < 0) return false;
  if (allocations_left-- > 0) return false;
  all_fail = all_fail_then;
  return true;
}

// Calls until nothing fails any more: first the first allocation fails, then the second, ... `failed` is
// called after each std::bad_alloc. How often that was.
template <class Call, class Failed>
uint64_t fail_each_allocation(Call call, Failed failed) {
  for (int64_t number = 0;; ++number) {
    allocations_left = number;
    try {
      call();
      allocations_left = -1;
      return static_cast<uint64_t>(number);
    } catch (const std::bad_alloc&) {
      allocations_left = -1;
      failed();
    }
  }
}

}  // namespace pgalloc::native_tests
