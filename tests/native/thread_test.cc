// Threads of the core: what the kernel is asked for them.

#include "os/thread.h"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <thread>

#include "native/support.h"

namespace pgalloc::thread_test {
namespace {

sigset_t blocked() {
  sigset_t set;
  ::pthread_sigmask(SIG_BLOCK, nullptr, &set);
  return set;
}
bool takes(int signal) {
  const sigset_t set = blocked();
  return sigismember(&set, signal) == 0;
}

TEST(each_thread_has_an_id) {
  EXPECT_EQ(os::thread_id(), ::getpid());
  pid_t other = 0;
  std::thread([&] { other = os::thread_id(); }).join();
  EXPECT(other != 0 && other != ::getpid());
}

TEST(signals_from_outside_go_to_other_threads) {
  EXPECT(takes(SIGTERM));
  {
    const os::WithoutSignals quiet;
    for (const int signal : {SIGTERM, SIGINT, SIGALRM, SIGUSR1, SIGCHLD}) EXPECT(!takes(signal));
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGABRT}) EXPECT(takes(fault));
    bool inherited = false;
    std::thread([&] { inherited = !takes(SIGTERM); }).join();
    EXPECT(inherited);
  }
  EXPECT(takes(SIGTERM));
  sigset_t one;
  sigemptyset(&one);
  sigaddset(&one, SIGUSR1);
  ::pthread_sigmask(SIG_BLOCK, &one, nullptr);
  {
    const os::WithoutSignals quiet;
  }
  EXPECT(!takes(SIGUSR1));  // as it was
  EXPECT(takes(SIGTERM));
}

TEST(a_thread_that_was_joined_is_gone) {
  for (int i = 0; i < 200; ++i) {
    std::atomic<pid_t> id{0};
    std::thread([&] { id = os::thread_id(); }).join();
    os::wait_until_gone(id);
    EXPECT(!std::filesystem::exists("/proc/self/task/" + std::to_string(id)));
  }
  EXPECT_EQ(native_tests::threads_of_process(), 1u);
}

// struct sched_attr of linux/sched/types.h.
struct Attributes {
  uint32_t size;
  uint32_t policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t slice_ns;
  uint64_t deadline_ns;
  uint64_t period_ns;
};

TEST(a_thread_that_is_to_run_promptly_has_the_best_nice_value_and_a_short_slice) {
  std::thread([] {
    const int before = ::getpriority(PRIO_PROCESS, 0);
    os::run_promptly();
    Attributes attributes{};
    EXPECT_EQ(::syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0), 0);
    const bool may = ::setpriority(PRIO_PROCESS, 0, -20) == 0;
    EXPECT_EQ(attributes.nice, may ? -20 : before);
    // Before Linux 6.12 there is no slice of its own.
    if (may && attributes.slice_ns != 0) EXPECT_EQ(attributes.slice_ns, 100'000u);
  }).join();
}

}  // namespace
}  // namespace pgalloc::thread_test
