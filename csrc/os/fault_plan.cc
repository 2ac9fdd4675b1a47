#include "os/fault_plan.h"

#include <errno.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>

#include "os/syscalls.h"

namespace pgalloc::os {
namespace {

// The thread that is to let go may need the GIL, whose owner may need what the held call holds.
constexpr std::chrono::seconds kHoldMax{60};

enum class Call : uint32_t {
#define PGALLOC_NAME(result, name, parameters, arguments) name,
  PGALLOC_SYSCALLS(PGALLOC_NAME)
#undef PGALLOC_NAME
      kCount
};

constexpr std::array kNames = {
#define PGALLOC_NAME(result, name, parameters, arguments) std::string_view(#name),
    PGALLOC_SYSCALLS(PGALLOC_NAME)
#undef PGALLOC_NAME
};

constinit std::atomic<bool> in_force{false};
constinit std::atomic<Call> target{Call::kCount};
constinit std::atomic<int> error_number{0};
constinit std::atomic<bool> kills{false};
constinit std::atomic<uint64_t> first_failing{0};
constinit std::atomic<uint64_t> failing_times{0};
constinit std::atomic<uint64_t> calls{0};
constinit std::atomic<uint64_t> failures{0};
// Plans have numbers, or a thread that is let go late would be held by the next plan.
constinit std::atomic<uint64_t> plan_number{0};
constinit std::atomic<uint64_t> let_go_number{0};
constinit std::atomic<bool> holds{false};
constinit std::atomic<bool> held{false};
constinit std::atomic<bool> expired{false};
constinit std::mutex hold_mutex;
std::condition_variable hold_changed;

// Which of the calls that the plan is about this is, from 1; 0 for any other call.
uint64_t counted(Call call) {
  return call == target.load(std::memory_order_acquire) ? calls.fetch_add(1) + 1 : 0;
}

bool must_fail(uint64_t number) {
  if (number == 0) return false;
  const uint64_t first = first_failing.load();
  const int error = error_number.load();
  if ((error == 0 && !kills) || number < first || number - first >= failing_times.load()) {
    return false;
  }
  if (kills) ::kill(::getpid(), SIGKILL);
  failures.fetch_add(1);
  errno = error;
  return true;
}

void keep_back(uint64_t number) {
  if (number == 0 || !holds || number != first_failing) return;
  const int error = errno;
  const uint64_t plan = plan_number;
  held = true;
  {
    std::unique_lock lock(hold_mutex);
    if (!hold_changed.wait_for(lock, kHoldMax, [&] { return let_go_number >= plan; })) {
      expired = true;
    }
  }
  errno = error;
}

constexpr Syscalls kFaulty = {
#define PGALLOC_FAULTY(result, name, parameters, arguments)  \
  .name = [] parameters -> result {                          \
    const uint64_t number = counted(Call::name);             \
    if (must_fail(number)) return (result) - 1; /* NOLINT */ \
    const auto answer = kernel().name arguments;             \
    keep_back(number);                                       \
    return answer;                                           \
  },
    PGALLOC_SYSCALLS(PGALLOC_FAULTY)
#undef PGALLOC_FAULTY
};

}  // namespace

std::span<const std::string_view> syscall_names() { return kNames; }

bool install_fault(const Fault& fault) {
  for (uint32_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] != fault.name) continue;
    if (in_force.exchange(true)) return false;
    calls = 0;
    failures = 0;
    error_number = fault.error_number;
    kills = fault.kill;
    holds = fault.hold;
    held = false;
    expired = false;
    ++plan_number;
    first_failing = fault.first;
    failing_times = fault.times;
    target.store(static_cast<Call>(i), std::memory_order_release);
    use(kFaulty);
    return true;
  }
  return false;
}

void remove_fault() {
  use(kernel());
  target = Call::kCount;
  let_go();
  in_force = false;
}

uint64_t fault_calls() { return calls; }
uint64_t fault_failures() { return failures; }

bool hold_reached() { return held; }
bool hold_expired() { return expired; }

void let_go() {
  {
    const std::lock_guard lock(hold_mutex);
    let_go_number = plan_number.load();
  }
  hold_changed.notify_all();
}

}  // namespace pgalloc::os
