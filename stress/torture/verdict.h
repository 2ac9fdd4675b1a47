// Purpose: how a run ends when something is wrong: at once, with the reason and exit status 1.
//
// Thread safety: any thread. Nothing is torn down: the other threads are still at work.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "base/status.h"

namespace pgalloc::torture {

[[noreturn, gnu::format(printf, 1, 2)]] inline void fail(const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::printf("FAILED: ");
  std::vprintf(format, arguments);
  std::printf("\n");
  va_end(arguments);
  std::fflush(stdout);
  std::_Exit(1);
}

inline void expect_ok(const Status& status, const char* what) {
  if (status.ok()) return;
  fail("%s: %s (errno %d)", what, status.message().c_str(), status.error_number());
}

}  // namespace pgalloc::torture
