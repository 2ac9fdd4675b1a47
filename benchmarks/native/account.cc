// Knowing what is committed, and asking the owners of memory to let go of it.
#include <sys/stat.h>

#include "base/check.h"
#include "native/measure.h"
#include "native/pages.h"
#include "native/workloads.h"
#include "os/syscalls.h"

namespace pgalloc::benchmarks {
namespace {

constexpr uint64_t kScanned = 8 * kGiB;

void scan(MemoryFile& file, const char* workload) {
  file.use_real_clock();  // forgets that another scan was just now
  const double seconds = timed([&] {
    const auto current = file.scanner().update(nullptr);
    PGALLOC_CHECK(current.ok() && *current);
  });
  report({.workload = workload, .implementation = "core", .bytes = kScanned, .seconds = seconds});
}

void count(MemoryFile& file, const char* workload) {
  os::CacheStat cached;
  struct stat status{};
  const double seconds = timed([&] {
    PGALLOC_CHECK(os::kernel().fstat(file.fd(), &status) == 0);
    PGALLOC_CHECK(os::kernel().cachestat(file.fd(), 0, kScanned, &cached) == 0);
  });
  report(
      {.workload = workload, .implementation = "cachestat", .bytes = kScanned, .seconds = seconds});
}

}  // namespace

void update_usage() {
  constexpr uint64_t kTouchedOneIn = 16;
  constexpr uint64_t kOps = 100'000;
  const auto file = new_file();
  char* const memory = address_of(*file, allocate(*file, kScanned));
  for (uint64_t page = 0; page < kScanned / page_size(); page += kTouchedOneIn) {
    memory[page * page_size()] = 1;
  }
  count(*file, "update_usage_cold");
  scan(*file, "update_usage_cold");

  memory[kScanned / 2 + 5 * page_size()] = 1;
  count(*file, "update_usage_one_more");
  scan(*file, "update_usage_one_more");

  struct stat status{};
  report({.workload = "update_usage_same",
          .implementation = "fstat",
          .ops = kOps,
          .seconds = timed([&] {
            for (uint64_t i = 0; i < kOps; ++i) os::kernel().fstat(file->fd(), &status);
          })});
  report({.workload = "update_usage_same",
          .implementation = "core",
          .ops = kOps,
          .seconds = timed([&] {
            for (uint64_t i = 0; i < kOps; ++i) PGALLOC_CHECK(*file->scanner().update(nullptr));
          })});
}

void evictables() {
  constexpr uint64_t kRanges = 100'000;
  constexpr uint64_t kStride = 7919;  // a prime: the ranges come in no order, and never touch
  constexpr Evictables::UserId kUser = 1;
  Evictables evictables;
  uint64_t evicted = 0;
  const double seconds = timed([&] {
    for (uint64_t i = 0; i < kRanges; ++i) {
      const uint64_t start = i * kStride % kRanges * 2 * page_size();
      evictables.mark(kUser, {start, start + page_size()});
    }
    evictables.start_all();
    const auto user = evictables.wait_for_due_user();
    while (evictables.next(*user)) ++evicted;
  });
  PGALLOC_CHECK_OP(evicted, ==, kRanges);
  report({.workload = "evictables", .implementation = "core", .ops = kRanges, .seconds = seconds});
}

}  // namespace pgalloc::benchmarks
