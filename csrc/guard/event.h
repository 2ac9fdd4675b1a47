// Purpose: eventfds, by which the kernel and other threads wake the guard, and it wakes others.
//
// Thread safety: any thread.
#pragma once

#include <cstdint>

#include "os/descriptor.h"
#include "os/retry.h"
#include "os/syscalls.h"

namespace pgalloc {

inline void signal_event(int event_fd) {
  const uint64_t one = 1;
  (void)os::retry_interrupted([&] { return os::sys().write(event_fd, &one, sizeof one); });
}

// Whether it was written to. What has got the number of one that was closed is not read.
inline bool clear_event(const os::Descriptor& event) {
  if (!event.intact()) return false;
  uint64_t count = 0;
  return os::retry_interrupted([&] { return os::sys().read(event.fd(), &count, sizeof count); }) >
         0;
}

}  // namespace pgalloc
