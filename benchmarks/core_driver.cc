// Purpose: the workloads of the core, without Python, beside the bare system calls. Prints one JSON
// line per measurement: {workload, implementation, ops, ns_per_op, bytes, seconds}; `python -m
// benchmarks` runs it, repeats it and takes the medians.
//
//   core_driver [WORKLOAD ...]      default: all
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "core/memory_file.h"
#include "os/syscalls.h"

namespace pgalloc {
namespace {

using SteadyClock = std::chrono::steady_clock;
constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kGiB = uint64_t{1} << 30;

double seconds_since(SteadyClock::time_point begin) {
  return std::chrono::duration<double>(SteadyClock::now() - begin).count();
}

void report(const char* workload, const char* implementation, uint64_t ops, uint64_t bytes,
            double seconds) {
  std::printf("{\"workload\": \"%s\", \"implementation\": \"%s\", \"ops\": %llu, "
              "\"ns_per_op\": %.2f, \"bytes\": %llu, \"seconds\": %.6f}\n",
              workload, implementation, static_cast<unsigned long long>(ops),
              seconds * 1e9 / static_cast<double>(ops), static_cast<unsigned long long>(bytes),
              seconds);
  std::fflush(stdout);
}

std::shared_ptr<MemoryFile> new_file(const MemoryFileOptions& options = {}) {
  auto file = MemoryFile::create({}, options);
  PGALLOC_CHECK(file.ok());
  return *file;
}

FileRange allocate(MemoryFile& file, uint64_t length, Direction direction = Direction::kBottomUp,
                   AllocationMode mode = AllocationMode::kAllocateOnly) {
  auto range = file.allocate({.length = length, .direction = direction, .mode = mode}, true);
  PGALLOC_CHECK(range.ok());
  return *range;
}

void free_range(MemoryFile& file, FileRange range) { PGALLOC_CHECK(file.dec_ref(range).ok()); }
FileRange page_of(FileRange range, uint64_t page) {
  return {range.start + page * page_size(), range.start + (page + 1) * page_size()};
}

// 400,000 pages of which every second is free, and nothing is waste.
FileRange fragment(MemoryFile& file, uint64_t pages = 400'000) {
  const FileRange all = allocate(file, pages * page_size());
  for (uint64_t page = 0; page < pages; page += 2) free_range(file, page_of(all, page));
  file.wait_for_reclaim(std::nullopt);
  return all;
}

void pair() {
  const auto file = new_file();
  constexpr uint64_t kOps = 2'000'000;
  const auto begin = SteadyClock::now();
  for (uint64_t i = 0; i < kOps; ++i) free_range(*file, allocate(*file, page_size()));
  report("pair", "core", kOps, 0, seconds_since(begin));
}

void sequence() {
  const auto file = new_file();
  constexpr uint64_t kPages = 200'000;
  std::vector<FileRange> ranges(kPages);
  const auto begin = SteadyClock::now();
  for (FileRange& range : ranges) range = allocate(*file, page_size());
  for (const FileRange& range : ranges) free_range(*file, range);
  file->wait_for_reclaim(std::nullopt);
  report("sequence", "core", kPages, 0, seconds_since(begin));
}

void every_second() {
  const auto file = new_file();
  constexpr uint64_t kPages = 400'000;
  const FileRange all = allocate(*file, kPages * page_size());
  const auto begin = SteadyClock::now();
  for (uint64_t page = 0; page < kPages; page += 2) free_range(*file, page_of(all, page));
  file->wait_for_reclaim(std::nullopt);
  report("every_second", "core", kPages / 2, 0, seconds_since(begin));
  std::printf("{\"workload\": \"bookkeeping\", \"implementation\": \"core\", \"ops\": %llu, "
              "\"ns_per_op\": %.2f, \"bytes\": %zu, \"seconds\": 0}\n",
              static_cast<unsigned long long>(kPages / 2),
              static_cast<double>(file->bookkeeping_bytes()) / (kPages / 2.0),
              file->bookkeeping_bytes());
}

void fragmented_top_down() {
  const auto file = new_file();
  fragment(*file);
  constexpr uint64_t kOps = 100'000;
  const auto begin = SteadyClock::now();
  for (uint64_t i = 0; i < kOps; ++i) allocate(*file, 2 * page_size(), Direction::kTopDown);
  report("fragmented_top_down", "core", kOps, 0, seconds_since(begin));
}

void fragmented_bottom_up() {
  const auto file = new_file();
  fragment(*file);
  constexpr uint64_t kOps = 190'000;
  const auto begin = SteadyClock::now();
  for (uint64_t i = 0; i < kOps; ++i) allocate(*file, page_size());
  report("fragmented_bottom_up", "core", kOps, 0, seconds_since(begin));
}

void misaligned(uint64_t gaps, const char* name) {
  const auto file = new_file();
  // Gaps of 2 MiB that start a page past alignment: long enough, never aligned.
  const FileRange all = allocate(*file, (gaps + 1) * 4 * kMiB);
  for (uint64_t i = 0; i < gaps; ++i) {
    const uint64_t start = all.start + i * 4 * kMiB + page_size();
    free_range(*file, {start, start + 2 * kMiB});
  }
  file->wait_for_reclaim(std::nullopt);
  constexpr uint64_t kOps = 2'000;
  const auto begin = SteadyClock::now();
  for (uint64_t i = 0; i < kOps; ++i) allocate(*file, kHugePageSize);
  report(name, "core", kOps, 0, seconds_since(begin));
}

void references(bool outstanding) {
  const auto file = new_file();
  const FileRange all = allocate(*file, kGiB);
  constexpr uint64_t kPart = 65536;
  const auto part = [&](uint64_t i) {
    const uint64_t start = all.start + (i % (kGiB / kPart)) * kPart;
    return FileRange{start, start + kPart};
  };
  if (outstanding) {
    for (uint64_t i = 0; i < 8192; ++i) PGALLOC_CHECK(file->inc_ref(part(2 * i), 0).ok());
  }
  std::mt19937_64 random(1);
  std::vector<uint64_t> parts(1'000'000);
  for (uint64_t& p : parts) p = random();
  const auto begin = SteadyClock::now();
  for (const uint64_t p : parts) {
    PGALLOC_CHECK(file->inc_ref(part(p), 0).ok());
    PGALLOC_CHECK(file->dec_ref(part(p)).ok());
  }
  report(outstanding ? "references_8192" : "references", "core", parts.size(), 0,
         seconds_since(begin));
}

void map_random() {
  const auto file = new_file();
  const FileRange all = allocate(*file, 8 * kGiB);
  std::mt19937_64 random(1);
  std::vector<FileRange> ranges(100'000);
  for (FileRange& range : ranges) {
    const uint64_t start = all.start + random() % (8 * kGiB / 65536 - 1) * 65536;
    range = {start, start + 65536};
    PGALLOC_CHECK(file->map(range).ok());
  }
  uintptr_t sum = 0;
  const auto begin = SteadyClock::now();
  for (int round = 0; round < 50; ++round) {
    for (const FileRange& range : ranges) sum += reinterpret_cast<uintptr_t>(*file->map(range));
  }
  const double seconds = seconds_since(begin);
  asm volatile("" ::"r"(sum));
  report("map", "core", ranges.size() * 50, 0, seconds);
}

struct BareFile {
  BareFile(uint64_t size) : fd(::memfd_create("bare", MFD_CLOEXEC)), size(size) {
    PGALLOC_CHECK(::ftruncate(fd, static_cast<off_t>(size)) == 0);
    address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    PGALLOC_CHECK(address != MAP_FAILED);
  }
  ~BareFile() {
    ::munmap(address, size);
    ::close(fd);
  }
  int fd;
  uint64_t size;
  void* address;
};

template <class Work>
double timed(Work work) {
  const auto begin = SteadyClock::now();
  work();
  return seconds_since(begin);
}

void populate() {
  {
    BareFile bare(kGiB);
    report("populate", "bare", 1, kGiB,
           timed([&] { PGALLOC_CHECK(::madvise(bare.address, kGiB, 23) == 0); }));
  }
  const auto file = new_file();
  report("populate", "core", 1, kGiB, timed([&] {
           allocate(*file, kGiB, Direction::kBottomUp, AllocationMode::kAllocateAndWritePopulate);
         }));
}

void commit() {
  {
    BareFile bare(kGiB);
    report("commit", "bare", 1, kGiB,
           timed([&] { PGALLOC_CHECK(::fallocate(bare.fd, 0, 0, kGiB) == 0); }));
  }
  const auto file = new_file();
  report("commit", "core", 1, kGiB, timed([&] {
           allocate(*file, kGiB, Direction::kBottomUp, AllocationMode::kAllocateAndCommit);
         }));
}

void free_populate() {
  const auto file = new_file();
  const auto mode = AllocationMode::kAllocateAndWritePopulate;
  FileRange range = allocate(*file, kGiB, Direction::kBottomUp, mode);
  {
    BareFile bare(kGiB);
    std::memset(bare.address, 1, kGiB);
    report("free_populate", "memset", 1, kGiB,
           timed([&] { std::memset(bare.address, 0, kGiB); }));
  }
  std::memset(*file->map(range), 1, kGiB);
  report("free_populate", "core", 1, kGiB, timed([&] {
           free_range(*file, range);
           range = allocate(*file, kGiB, Direction::kBottomUp, mode);
         }));
}

void give_back() {
  {
    BareFile bare(kGiB);
    std::memset(bare.address, 1, kGiB);
    report("give_back", "bare", 1, kGiB, timed([&] {
             PGALLOC_CHECK(::fallocate(bare.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                                       kGiB) == 0);
           }));
  }
  const auto file = new_file();
  const FileRange range = allocate(*file, kGiB);
  std::memset(*file->map(range), 1, kGiB);
  report("give_back", "core", 1, kGiB, timed([&] {
           free_range(*file, range);
           file->wait_for_reclaim(std::nullopt);
         }));
}

void update_usage() {
  constexpr uint64_t kBytes = 8 * kGiB;
  const auto file = new_file();
  const FileRange range = allocate(*file, kBytes);
  char* const memory = *file->map(range);
  for (uint64_t page = 0; page < kBytes / page_size(); page += 16) memory[page * page_size()] = 1;
  os::CacheStat stat;
  report("update_usage_cold", "cachestat", 1, kBytes,
         timed([&] { os::kernel().cachestat(file->fd(), 0, kBytes, &stat); }));
  report("update_usage_cold", "core", 1, kBytes,
         timed([&] { PGALLOC_CHECK(*file->update_usage(nullptr)); }));
  std::this_thread::sleep_for(std::chrono::seconds(2));  // the throttle
  memory[kBytes / 2 + 5 * page_size()] = 1;
  report("update_usage_one_more", "core", 1, kBytes,
         timed([&] { PGALLOC_CHECK(*file->update_usage(nullptr)); }));
  constexpr uint64_t kOps = 100'000;
  report("update_usage_same", "core", kOps, 0, timed([&] {
           for (uint64_t i = 0; i < kOps; ++i) PGALLOC_CHECK(*file->update_usage(nullptr));
         }));
}

void evictables() {
  Evictables evictables;
  constexpr uint64_t kRanges = 100'000;
  const auto begin = SteadyClock::now();
  for (uint64_t i = 0; i < kRanges; ++i) {
    const uint64_t start = (i * 7919 % kRanges) * 2 * 4096;
    evictables.mark(1, {start, start + 4096});
  }
  evictables.start_all();
  const auto user = evictables.wait_for_due_user();
  while (evictables.next(*user)) {
  }
  report("evictables", "core", kRanges, 0, seconds_since(begin));
}

void two_threads() {
  const auto file = new_file();
  constexpr uint64_t kOps = 1'000'000;
  const auto work = [&] {
    for (uint64_t i = 0; i < kOps; ++i) free_range(*file, allocate(*file, page_size()));
  };
  const auto begin = SteadyClock::now();
  std::thread other(work);
  work();
  other.join();
  report("two_threads", "core", 4 * kOps, 0, seconds_since(begin));
}

struct Workload {
  const char* name;
  std::function<void()> run;
};

const Workload kWorkloads[] = {
    {"pair", pair},
    {"sequence", sequence},
    {"every_second", every_second},
    {"fragmented_top_down", fragmented_top_down},
    {"fragmented_bottom_up", fragmented_bottom_up},
    {"misaligned_1k", [] { misaligned(1000, "misaligned_1k"); }},
    {"misaligned_4k", [] { misaligned(4000, "misaligned_4k"); }},
    {"misaligned_16k", [] { misaligned(16000, "misaligned_16k"); }},
    {"references", [] { references(false); }},
    {"references_8192", [] { references(true); }},
    {"map", map_random},
    {"populate", populate},
    {"commit", commit},
    {"free_populate", free_populate},
    {"give_back", give_back},
    {"update_usage", update_usage},
    {"evictables", evictables},
    {"two_threads", two_threads},
};

}  // namespace
}  // namespace pgalloc

int main(int argc, char** argv) {
  const std::vector<std::string> wanted(argv + 1, argv + argc);
  for (const auto& workload : pgalloc::kWorkloads) {
    if (wanted.empty() || std::find(wanted.begin(), wanted.end(), workload.name) != wanted.end()) {
      workload.run();
    }
  }
}
