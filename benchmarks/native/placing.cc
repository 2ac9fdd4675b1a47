// Finding a place for pages, and giving it back. No page is touched.
#include <thread>
#include <vector>

#include "native/measure.h"
#include "native/pages.h"
#include "native/workloads.h"

namespace pgalloc::benchmarks {
namespace {

constexpr uint64_t kFragmentedPages = 400'000;

// Every second page is free, and nothing is waste.
void free_every_second(MemoryFile& file, FileRange all) {
  for (uint64_t page = 0; page < kFragmentedPages; page += 2) free_range(file, page_of(all, page));
  drain(file);
}

std::shared_ptr<MemoryFile> fragmented_file() {
  auto file = new_file();
  free_every_second(*file, allocate(*file, kFragmentedPages * page_size()));
  return file;
}

void bare_punches() {
  BareFile bare(kFragmentedPages * page_size());
  const double seconds = timed([&] {
    for (uint64_t page = 0; page < kFragmentedPages; page += 2) {
      bare.punch(page * page_size(), page_size());
    }
  });
  report({.workload = "every_second",
          .implementation = "bare",
          .ops = kFragmentedPages / 2,
          .seconds = seconds});
}

void core_every_second() {
  const auto file = new_file();
  const FileRange all = allocate(*file, kFragmentedPages * page_size());
  constexpr uint64_t kHoles = kFragmentedPages / 2;
  const double seconds = timed([&] { free_every_second(*file, all); });
  report({.workload = "every_second", .implementation = "core", .ops = kHoles, .seconds = seconds});
  report({.workload = "bookkeeping",
          .implementation = "core",
          .ops = kHoles,
          .bytes = file->bookkeeping_bytes()});
}

// Gaps of 2 MiB that begin a page past alignment: long enough, and never the place.
void misaligned(const char* workload, uint64_t gaps) {
  const uint64_t kPeriod = 2 * huge_page_size();
  constexpr uint64_t kOps = 10'000;
  const auto file = new_file();
  const FileRange all = allocate(*file, (gaps + 1) * kPeriod);
  for (uint64_t i = 0; i < gaps; ++i) {
    const uint64_t start = all.start + i * kPeriod + page_size();
    free_range(*file, {start, start + huge_page_size()});
  }
  drain(*file);
  const double seconds = timed([&] {
    for (uint64_t i = 0; i < kOps; ++i) allocate(*file, huge_page_size());
  });
  report({.workload = workload, .implementation = "core", .ops = kOps, .seconds = seconds});
}

void allocate_and_free(MemoryFile& file, uint64_t times) {
  for (uint64_t i = 0; i < times; ++i) free_range(file, allocate(file, page_size()));
}

}  // namespace

void pair() {
  constexpr uint64_t kOps = 2'000'000;
  const auto file = new_file();
  const double seconds = timed([&] { allocate_and_free(*file, kOps); });
  report({.workload = "pair", .implementation = "core", .ops = kOps, .seconds = seconds});
}

// An op is a pair, as in the Go figures: of both threads together, by the clock on the wall.
void two_threads() {
  constexpr uint64_t kOpsPerThread = 1'000'000;
  const auto file = new_file();
  const double seconds = timed([&] {
    std::thread other([&] { allocate_and_free(*file, kOpsPerThread); });
    allocate_and_free(*file, kOpsPerThread);
    other.join();
  });
  report({.workload = "two_threads",
          .implementation = "core",
          .ops = 2 * kOpsPerThread,
          .seconds = seconds});
}

void sequence() {
  constexpr uint64_t kPages = 200'000;
  const auto file = new_file();
  std::vector<FileRange> ranges(kPages);
  const double seconds = timed([&] {
    for (FileRange& range : ranges) range = allocate(*file, page_size());
    for (const FileRange& range : ranges) free_range(*file, range);
    drain(*file);
  });
  report({.workload = "sequence", .implementation = "core", .ops = kPages, .seconds = seconds});
}

void every_second() { in_turns({bare_punches, core_every_second}); }

void fragmented_top_down() {
  constexpr uint64_t kOps = 100'000;
  const auto file = fragmented_file();
  const double seconds = timed([&] {
    for (uint64_t i = 0; i < kOps; ++i) allocate(*file, 2 * page_size(), Direction::kTopDown);
  });
  report({.workload = "fragmented_top_down",
          .implementation = "core",
          .ops = kOps,
          .seconds = seconds});
}

void fragmented_bottom_up() {
  constexpr uint64_t kOps = 190'000;  // there are 200,000 holes
  const auto file = fragmented_file();
  const double seconds = timed([&] {
    for (uint64_t i = 0; i < kOps; ++i) allocate(*file, page_size());
  });
  report({.workload = "fragmented_bottom_up",
          .implementation = "core",
          .ops = kOps,
          .seconds = seconds});
}

void misaligned_1k() { misaligned("misaligned_1k", 1'000); }
void misaligned_4k() { misaligned("misaligned_4k", 4'000); }
void misaligned_16k() { misaligned("misaligned_16k", 16'000); }

}  // namespace pgalloc::benchmarks
