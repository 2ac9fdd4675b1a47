#include "os/fault_plan.h"

#include <errno.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>

#include "os/syscalls.h"

namespace pgalloc::os {
namespace {

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

bool must_fail(Call call) {
  if (call != target.load(std::memory_order_acquire)) return false;
  const uint64_t number = calls.fetch_add(1) + 1;
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

constexpr Syscalls kFaulty = {
#define PGALLOC_FAULTY(result, name, parameters, arguments)      \
  .name = [] parameters -> result {                              \
    if (must_fail(Call::name)) return (result) - 1; /* NOLINT */ \
    return kernel().name arguments;                              \
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
  in_force = false;
}

uint64_t fault_calls() { return calls; }
uint64_t fault_failures() { return failures; }

}  // namespace pgalloc::os
