// Committing memory and giving it back: the kernel does most of the work, and the bare system call
// is the measure.
#include <sched.h>

#include <cstring>

#include "base/check.h"
#include "native/measure.h"
#include "native/pages.h"
#include "native/workloads.h"

namespace pgalloc::benchmarks {
namespace {

// One op on 1 GiB.
void report_gib(const char* workload, const char* implementation, double seconds) {
  report(
      {.workload = workload, .implementation = implementation, .bytes = kGiB, .seconds = seconds});
}

double allocating(AllocationMode mode) {
  const auto file = new_file();
  return timed([&] { allocate(*file, kGiB, Direction::kBottomUp, mode); });
}

// Keeps this thread, and those it starts, on one processor.
class OneProcessor {
 public:
  OneProcessor() {
    PGALLOC_CHECK(::sched_getaffinity(0, sizeof before_, &before_) == 0);
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(::sched_getcpu(), &one);
    PGALLOC_CHECK(::sched_setaffinity(0, sizeof one, &one) == 0);
  }
  ~OneProcessor() { ::sched_setaffinity(0, sizeof before_, &before_); }
  OneProcessor(const OneProcessor&) = delete;
  OneProcessor& operator=(const OneProcessor&) = delete;

 private:
  cpu_set_t before_;
};

void bare_populate() {
  BareFile bare(kGiB);
  report_gib("populate", "bare", timed([&] { bare.populate(); }));
}

void core_populate() {
  report_gib("populate", "core", allocating(AllocationMode::kAllocateAndWritePopulate));
}

void core_populate_on_one() {
  const OneProcessor one;
  report_gib("populate", "core, 1 thread", allocating(AllocationMode::kAllocateAndWritePopulate));
}

void bare_commit() {
  BareFile bare(kGiB);
  report_gib("commit", "bare", timed([&] { bare.commit(); }));
}

void core_commit() { report_gib("commit", "core", allocating(AllocationMode::kAllocateAndCommit)); }

void clear_by_memset() {
  BareFile bare(kGiB);
  std::memset(bare.address(), 1, kGiB);
  report_gib("free_populate", "memset", timed([&] { std::memset(bare.address(), 0, kGiB); }));
}

void core_free_populate() {
  constexpr auto kMode = AllocationMode::kAllocateAndWritePopulate;
  const auto file = new_file();
  const FileRange range = allocate(*file, kGiB, Direction::kBottomUp, kMode);
  std::memset(address_of(*file, range), 1, kGiB);
  report_gib("free_populate", "core", timed([&] {
               free_range(*file, range);
               allocate(*file, kGiB, Direction::kBottomUp, kMode);
             }));
}

void bare_give_back() {
  BareFile bare(kGiB);
  std::memset(bare.address(), 1, kGiB);
  report_gib("give_back", "bare", timed([&] { bare.punch(0, kGiB); }));
}

void core_give_back() {
  const auto file = new_file();
  const FileRange range = allocate(*file, kGiB);
  std::memset(address_of(*file, range), 1, kGiB);
  report_gib("give_back", "core", timed([&] {
               free_range(*file, range);
               drain(*file);
             }));
}

}  // namespace

void populate() { in_turns({bare_populate, core_populate, core_populate_on_one}); }
void commit() { in_turns({bare_commit, core_commit}); }
void free_populate() { in_turns({clear_by_memset, core_free_populate}); }
void give_back() { in_turns({bare_give_back, core_give_back}); }

}  // namespace pgalloc::benchmarks
