#include "backing/prefault.h"

#include <errno.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>

#include "base/units.h"
#include "os/retry.h"
#include "os/syscalls.h"

namespace pgalloc {

using os::retry_interrupted;
using os::sys;

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14
#endif

namespace {

// Methods this kernel or this process cannot use at all. Transient errors never set these.
constinit std::atomic<bool> populate_unusable{false};
constinit std::atomic<bool> mlock_unusable{false};

// Below this a second thread costs more than it brings (a thread starts in about 50 us, and a page
// is populated in about 0.6 us).
constexpr size_t kParallelMinimum = size_t{8} << 20;
constexpr unsigned kThreadsMax = 8;

// Runs `work(address, length)` over the range, cut at huge-page borders into one part per thread.
template <class Work>
void in_parallel(char* address, size_t length, Work work) {
  const unsigned threads = length < kParallelMinimum
                               ? 1
                               : std::clamp(std::thread::hardware_concurrency(), 1u, kThreadsMax);
  const size_t part = align_up((length + threads - 1) / threads, huge_page_size());
  std::array<std::thread, kThreadsMax> helpers;
  size_t begin = 0;
  try {
    for (unsigned i = 1; i < threads && begin + part < length; ++i) {
      helpers[i] = std::thread(work, address + begin, part);
      begin += part;
    }
  } catch (const std::system_error&) {  // NOLINT: no thread to be had, this one does the rest
  } catch (const std::bad_alloc&) {     // NOLINT: nor memory for one
  }
  work(address + begin, length - begin);
  for (std::thread& helper : helpers) {
    if (helper.joinable()) helper.join();
  }
}

// False when populating did not happen and locking may.
bool populate(char* address, size_t length) {
  if (populate_unusable.load(std::memory_order_relaxed)) return false;
  const int result =
      retry_interrupted([&] { return sys().madvise(address, length, MADV_POPULATE_WRITE); });
  if (result == 0) return true;
  if (errno == EINVAL || errno == ENOSYS) populate_unusable = true;
  return false;
}

void lock_and_unlock(char* address, size_t length) {
  if (mlock_unusable.load(std::memory_order_relaxed)) return;
  const auto begin = align_up(reinterpret_cast<uintptr_t>(address), huge_page_size());
  const auto end = align_down(reinterpret_cast<uintptr_t>(address) + length, huge_page_size());
  for (uintptr_t page = begin; page < end; page += huge_page_size()) {
    void* const start = reinterpret_cast<void*>(page);  // NOLINT(performance-no-int-to-ptr)
    if (sys().mlock(start, huge_page_size()) != 0) {
      if (errno == EPERM) mlock_unusable = true;
      return;
    }
    sys().munlock(start, huge_page_size());
  }
}

}  // namespace

void prefault(char* address, size_t length) {
  if (length <= page_size()) return;
  in_parallel(address, length, [](char* part, size_t size) {
    if (!populate(part, size)) lock_and_unlock(part, size);
  });
}

Status commit_by_touch(char* address, size_t length) {
  if (populate(address, length)) return {};
  if (!populate_unusable.load(std::memory_order_relaxed)) {
    return Status::system_error(errno, "madvise");
  }
  for (size_t offset = 0; offset < length; offset += page_size()) {
    *const_cast<volatile char*>(address + offset) = 0;
  }
  return {};
}

void clear_memory(char* address, size_t length) {
  in_parallel(address, length, [](char* part, size_t size) { std::memset(part, 0, size); });
}

namespace testing {
bool prefault_by_populate() { return !populate_unusable; }
bool prefault_by_mlock() { return !mlock_unusable; }
void reset_prefault() {
  populate_unusable = false;
  mlock_unusable = false;
}
}  // namespace testing

}  // namespace pgalloc
