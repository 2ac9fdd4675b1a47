// Purpose: repeat a system call that a signal interrupted, but not for ever: a call that is always
// interrupted is reported as the failure it is.
#pragma once

#include <errno.h>

namespace pgalloc::os {

template <class Call>
auto retry_interrupted(Call call) {
  constexpr int kAttempts = 100;
  auto result = call();
  for (int attempt = 1; result == -1 && errno == EINTR && attempt < kAttempts; ++attempt) {
    result = call();
  }
  return result;
}

}  // namespace pgalloc::os
