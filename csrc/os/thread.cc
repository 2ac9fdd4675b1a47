#include "os/thread.h"

#include <errno.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>

namespace pgalloc::os {

pid_t thread_id() { return static_cast<pid_t>(::syscall(SYS_gettid)); }

void wait_until_gone(pid_t thread_id) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(1);
  while (::syscall(SYS_tgkill, ::getpid(), thread_id, 0) == 0 || errno != ESRCH) {
    if (std::chrono::steady_clock::now() > deadline) return;
    ::sched_yield();
  }
}

}  // namespace pgalloc::os
