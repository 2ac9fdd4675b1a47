// Purpose: what several tests need: random numbers with a seed, pages as ranges, and a table of system
// calls in which a test replaces some.
//
// Thread safety: externally synchronised.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <deque>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "native/test.h"
#include "os/syscalls.h"

namespace pgalloc::native_tests {

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) { context = "seed " + std::to_string(seed); }
  uint64_t below(uint64_t bound) { return engine_() % bound; }
  uint64_t between(uint64_t low, uint64_t high) { return low + below(high - low + 1); }
  bool one_in(uint64_t times) { return below(times) == 0; }

 private:
  std::mt19937_64 engine_;
};

// The pages [first, end) of a file.
inline FileRange pages(uint64_t first, uint64_t end) {
  return {first * page_size(), end * page_size()};
}
inline uint64_t page_of(uint64_t offset) { return offset / page_size(); }

// A non-empty range of a file of so many pages.
inline FileRange random_pages(Random& random, uint64_t page_count, uint64_t length_max) {
  const uint64_t first = random.below(page_count);
  const uint64_t length = random.between(1, length_max);
  return pages(first, std::min(page_count, first + length));
}

// The longest runs of pages for which `is(page)` holds.
template <class Is>
std::vector<FileRange> runs_where(uint64_t page_count, Is is) {
  std::vector<FileRange> runs;
  for (uint64_t page = 0; page < page_count; ++page) {
    if (!is(page)) continue;
    if (!runs.empty() && runs.back().end == page * page_size()) {
      runs.back().end += page_size();
    } else {
      runs.push_back(pages(page, page + 1));
    }
  }
  return runs;
}

// Whether a thread of this process waits for something.
inline bool is_asleep(pid_t thread_id) {
  std::ifstream file("/proc/self/task/" + std::to_string(thread_id) + "/stat");
  std::string stat;
  std::getline(file, stat);
  return stat.find(") S ") != stat.npos;
}

inline size_t threads_of_process() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  const auto count = static_cast<size_t>(std::distance(begin(tasks), end(tasks)));
#ifdef __SANITIZE_THREAD__
  return count > 1 ? count - 1 : count;  // it has one of its own once there was a second one
#else
  return count;
#endif
}

// What a forked child can do that was forked while other threads ran, under a sanitizer: nothing under
// ThreadSanitizer, which does not know its threads; under AddressSanitizer it must not allocate, because
// the locks of that allocator (GCC 12) stay as another thread left them.
#ifdef __SANITIZE_THREAD__
#define PGALLOC_CHILDREN_HAVE_THREADS 0
#else
#define PGALLOC_CHILDREN_HAVE_THREADS 1
#endif
#ifdef __SANITIZE_ADDRESS__
#define PGALLOC_CHILDREN_ALLOCATE 0
#else
#define PGALLOC_CHILDREN_ALLOCATE PGALLOC_CHILDREN_HAVE_THREADS
#endif

// While it lives, the calls that a test has replaced are in force. The replacements are plain functions:
// what they need to know is static. Its table is never freed: a core thread may be inside a call.
class FakeKernel {
 public:
  FakeKernel() = default;
  ~FakeKernel() { os::use(os::kernel()); }
  FakeKernel(const FakeKernel&) = delete;
  FakeKernel& operator=(const FakeKernel&) = delete;

  os::Syscalls& calls = new_table();
  void begin() { os::use(calls); }

 private:
  static os::Syscalls& new_table() {
    static auto& tables = *new std::deque<os::Syscalls>;
    return tables.emplace_back(os::kernel());
  }
};

// For a FakeKernel: what only waits goes on at once, and is counted.
inline int milliseconds_waited = 0;
inline int poll_without_waiting(pollfd* waits, nfds_t count, int timeout_ms) {
  if (count == 0) milliseconds_waited += std::exchange(timeout_ms, 0);
  return os::kernel().poll(waits, count, timeout_ms);
}

}  // namespace pgalloc::native_tests
