// References on ranges, and the addresses of ranges.
#include <atomic>
#include <random>
#include <vector>

#include "base/check.h"
#include "native/measure.h"
#include "native/pages.h"
#include "native/workloads.h"

namespace pgalloc::benchmarks {
namespace {

constexpr uint64_t kPart = 64 << 10;

// The `number`th part of 64 KiB, counted round and round.
FileRange part_of(FileRange all, uint64_t number) {
  const uint64_t start = all.start + number % (all.length() / kPart) * kPart;
  return {start, start + kPart};
}

std::vector<FileRange> random_parts(FileRange all, size_t count) {
  std::mt19937_64 random(1);
  std::vector<FileRange> parts(count);
  for (FileRange& part : parts) part = part_of(all, random());
  return parts;
}

void inc_and_dec(const char* workload, uint64_t outstanding) {
  const auto file = new_file();
  const FileRange all = allocate(*file, kGiB);
  for (uint64_t i = 0; i < outstanding; ++i) {
    PGALLOC_CHECK(file->inc_ref(part_of(all, 2 * i), 0).ok());
  }
  const std::vector<FileRange> parts = random_parts(all, 1'000'000);
  const double seconds = timed([&] {
    for (const FileRange& part : parts) {
      PGALLOC_CHECK(file->inc_ref(part, 0).ok());
      PGALLOC_CHECK(file->dec_ref(part).ok());
    }
  });
  report({.workload = workload, .implementation = "core", .ops = parts.size(), .seconds = seconds});
}

constexpr uint64_t kMapped = 8 * kGiB;
constexpr size_t kRanges = 100'000;
constexpr int kRounds = 50;

void core_map() {
  const auto file = new_file();
  const std::vector<FileRange> ranges = random_parts(allocate(*file, kMapped), kRanges);
  for (const FileRange& range : ranges) address_of(*file, range);
  const double seconds = timed([&] {
    for (int round = 0; round < kRounds; ++round) {
      for (const FileRange& range : ranges) keep(*file->map(range));
    }
  });
  report(
      {.workload = "map", .implementation = "core", .ops = kRanges * kRounds, .seconds = seconds});
}

// The least that can be done: is the chunk mapped? Then it is there.
void atomic_load() {
  std::vector<std::atomic<bool>> mapped(kMapped / kChunkSize);
  for (std::atomic<bool>& chunk : mapped) chunk = true;
  const std::vector<FileRange> ranges = random_parts({0, kMapped}, kRanges);
  const double seconds = timed([&] {
    for (int round = 0; round < kRounds; ++round) {
      for (const FileRange& range : ranges) {
        const bool there = mapped[range.start / kChunkSize].load(std::memory_order_acquire);
        keep(there ? range.start : 0);
      }
    }
  });
  report({.workload = "map",
          .implementation = "atomic load",
          .ops = kRanges * kRounds,
          .seconds = seconds});
}

}  // namespace

void references() { inc_and_dec("references", 0); }
void references_8192() { inc_and_dec("references_8192", 8192); }
void map() { in_turns({atomic_load, core_map}); }

}  // namespace pgalloc::benchmarks
