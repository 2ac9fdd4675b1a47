#include "os/thread.h"

#include <errno.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>

namespace pgalloc::os {

WithoutSignals::WithoutSignals() {
  sigset_t blocked;
  ::sigfillset(&blocked);
  // A thread's own faults, which are reported where they happen.
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS}) {
    ::sigdelset(&blocked, fault);
  }
  ::pthread_sigmask(SIG_SETMASK, &blocked, &before_);
}

WithoutSignals::~WithoutSignals() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

pid_t thread_id() { return static_cast<pid_t>(::syscall(SYS_gettid)); }

std::chrono::nanoseconds process_time() {
  timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

bool is_gone(pid_t thread_id) {
  return ::syscall(SYS_tgkill, ::getpid(), thread_id, 0) != 0 && errno == ESRCH;
}

void wait_until_gone(pid_t thread_id) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(1);
  while (!is_gone(thread_id)) {
    if (std::chrono::steady_clock::now() > deadline) return;
    ::sched_yield();
  }
}

void run_promptly() {
  // struct sched_attr of linux/sched/types.h, which glibc 2.36 does not declare.
  struct {
    uint32_t size;
    uint32_t policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t slice_ns;  // "runtime"; for SCHED_OTHER the time slice
    uint64_t deadline_ns;
    uint64_t period_ns;
  } attributes{};
  attributes.size = sizeof attributes;
  attributes.policy = SCHED_OTHER;
  attributes.slice_ns = 100'000;
  attributes.nice = -20;
  if (::syscall(SYS_sched_setattr, 0, &attributes, 0) == 0) return;
  attributes.nice = 0;
  (void)::syscall(SYS_sched_setattr, 0, &attributes, 0);
}

}  // namespace pgalloc::os
