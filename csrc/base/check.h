// Purpose: checks of internal invariants. They stay on in release builds: a broken invariant in an
// allocator means that pages are about to be lost or shared, and stopping is the smaller harm.
// A caller's mistake is never reported this way; it becomes a Status (status.h).
#pragma once

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <type_traits>

namespace pgalloc::internal {

[[noreturn, gnu::cold, gnu::noinline]] inline void check_failed(const char* file, int line,
                                                                const char* expression) {
  std::fprintf(stderr, "pgalloc: %s:%d: internal check failed: %s\n", file, line, expression);
  std::abort();
}

[[noreturn, gnu::cold, gnu::noinline]] inline void check_op_failed(const char* file, int line,
                                                                   const char* expression,
                                                                   uint64_t left, uint64_t right) {
  std::fprintf(stderr,
               "pgalloc: %s:%d: internal check failed: %s (%" PRIu64 " [0x%" PRIx64 "] vs %" PRIu64
               " [0x%" PRIx64 "])\n",
               file, line, expression, left, left, right, right);
  std::abort();
}

}  // namespace pgalloc::internal

#define PGALLOC_CHECK(condition)      \
  (__builtin_expect(!!(condition), 1) \
       ? (void)0                      \
       : ::pgalloc::internal::check_failed(__FILE__, __LINE__, #condition))

// PGALLOC_CHECK_OP(a, <, b): like PGALLOC_CHECK(a < b), printing both operands.
#define PGALLOC_CHECK_OP(left, op, right)                                                \
  do {                                                                                   \
    const auto pgalloc_left_ = (left);                                                   \
    const auto pgalloc_right_ = (right);                                                 \
    if (__builtin_expect(!(pgalloc_left_ op pgalloc_right_), 0)) {                       \
      ::pgalloc::internal::check_op_failed(__FILE__, __LINE__, #left " " #op " " #right, \
                                           static_cast<uint64_t>(pgalloc_left_),         \
                                           static_cast<uint64_t>(pgalloc_right_));       \
    }                                                                                    \
  } while (false)

// Structural checks that cost a noticeable share of a hot call: debug builds only.
#ifdef NDEBUG
#define PGALLOC_DCHECK(condition) ((void)0)
#else
#define PGALLOC_DCHECK(condition) PGALLOC_CHECK(condition)
#endif
