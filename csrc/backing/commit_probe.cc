#include "backing/commit_probe.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "os/syscalls.h"

namespace pgalloc {

using os::sys;

namespace {

// Rough costs on shmem that decide how to look (measured: docs/benchmarks.md).
constexpr uint64_t kSeekNanosecondsPerRun = 750;
constexpr uint64_t kMincoreNanosecondsPerPage = 48;
constexpr uint64_t kPagemapNanosecondsPerPage = 3;

void append(std::vector<FileRange>& runs, FileRange run) {
  if (!runs.empty() && runs.back().end == run.start) {
    runs.back().end = run.end;
  } else {
    runs.push_back(run);
  }
}

uint64_t total(const std::vector<FileRange>& runs) {
  uint64_t bytes = 0;
  for (const FileRange& run : runs) bytes += run.length();
  return bytes;
}

}  // namespace

std::optional<uint64_t> CommitProbe::count(FileRange range) const {
  if (!file_.in_memory() || !intact_) return std::nullopt;
  os::CacheStat stat;
  if (sys().cachestat(file_.fd(), range.start, range.length(), &stat) != 0) return std::nullopt;
  const uint64_t pages = stat.cached + stat.evicted;
  return std::min(pages * page_size(), range.length());
}

template <typename Visit>
Status CommitProbe::visit_written(FileRange range, Visit visit) const {
  if (!intact_) return lost_descriptor(file_.fd());
  uint64_t position = range.start;
  while (position < range.end) {
    const off_t data = sys().lseek(file_.fd(), static_cast<off_t>(position), SEEK_DATA);
    if (data < 0) return errno == ENXIO ? Status() : Status::system_error(errno, "lseek");
    if (static_cast<uint64_t>(data) >= range.end) return {};
    const off_t hole = sys().lseek(file_.fd(), data, SEEK_HOLE);
    if (hole < 0) return errno == ENXIO ? Status() : Status::system_error(errno, "lseek");
    // A hole that begins inside a page (disk) does not free the page.
    const FileRange run{std::max(range.start, align_down(static_cast<uint64_t>(data), page_size())),
                        std::min(range.end, align_up(static_cast<uint64_t>(hole), page_size()))};
    visit(run);
    position = run.end;
  }
  return {};
}

uint64_t CommitProbe::count_written(FileRange range) const {
  if (const std::optional<uint64_t> counted = count(range)) return *counted;
  uint64_t bytes = 0;
  const Status seen = visit_written(range, [&](FileRange run) { bytes += run.length(); });
  return seen.ok() ? bytes : range.length();
}

Status CommitProbe::find_runs(FileRange range, std::vector<FileRange>& runs) {
  const std::optional<uint64_t> committed = count(range);
  if (!committed) {
    return file_.in_memory() ? by_mincore(range, runs) : by_seek(range, runs);
  }
  if (*committed == 0) return {};
  if (*committed == range.length()) {
    append(runs, range);
    return {};
  }
  return resolve_mixed(range, *committed, runs);
}

Status CommitProbe::resolve_mixed(FileRange range, uint64_t committed,
                                  std::vector<FileRange>& runs) {
  std::vector<FileRange> found;
  PGALLOC_RETURN_IF_ERROR(find_written(range, committed, found));
  if (total(found) >= committed) {
    for (const FileRange& run : found) append(runs, run);
    return {};
  }
  // Some pages are committed without having been written: look for them between the runs.
  uint64_t position = range.start;
  for (const FileRange& run : found) {
    if (position < run.start) PGALLOC_RETURN_IF_ERROR(by_halving({position, run.start}, runs));
    append(runs, run);
    position = run.end;
  }
  if (position < range.end) PGALLOC_RETURN_IF_ERROR(by_halving({position, range.end}, runs));
  return {};
}

// The runs of pages that were written, by the way that is likely to cost least.
Status CommitProbe::find_written(FileRange range, uint64_t committed,
                                 std::vector<FileRange>& runs) {
  const uint64_t pages = range.length() / page_size();
  const uint64_t runs_at_most = std::min(committed, range.length() - committed) / page_size() + 1;
  const uint64_t seek_nanoseconds = runs_at_most * kSeekNanosecondsPerRun;

  if (pages * kPagemapNanosecondsPerPage < seek_nanoseconds && by_pagemap(range, runs)) {
    if (total(runs) >= committed) return {};
    runs.clear();
  }
  return seek_nanoseconds < pages * kMincoreNanosecondsPerPage ? by_seek(range, runs)
                                                               : by_mincore(range, runs);
}

// False, without an error, where the kernel or the mapping cannot answer.
bool CommitProbe::by_pagemap(FileRange range, std::vector<FileRange>& runs) {
  if (!pagemap_.can_ask(range)) return false;
  std::vector<os::PageRegion> buffer(4096);
  if (pagemap_.visit(range, os::kPageIsPresent, buffer,
                     [&](FileRange run) { append(runs, run); })) {
    return true;
  }
  runs.clear();
  return false;
}

Status CommitProbe::by_seek(FileRange range, std::vector<FileRange>& runs) const {
  return visit_written(range, [&](FileRange run) { append(runs, run); });
}

Status CommitProbe::by_mincore(FileRange range, std::vector<FileRange>& runs) const {
  // A window of its own: the file's own mapping may not reach this chunk, and asking must not map
  // it for ever.
  constexpr uint64_t kWindow = uint64_t{1} << 30;
  std::vector<unsigned char> present;
  for (uint64_t begin = range.start; begin < range.end; begin += kWindow) {
    const FileRange window{begin, std::min(range.end, begin + kWindow)};
    present.assign(window.length() / page_size(), 0);  // first: memory may run out
    void* mapped = sys().mmap(nullptr, window.length(), PROT_READ, MAP_SHARED | MAP_NORESERVE,
                              file_.fd(), static_cast<off_t>(window.start));
    if (mapped == MAP_FAILED) return Status::system_error(errno, "mmap");
    const int result = sys().mincore(mapped, window.length(), present.data());
    const int error_number = errno;
    sys().munmap(mapped, window.length());
    if (result != 0) return Status::system_error(error_number, "mincore");
    for (size_t page = 0; page < present.size(); ++page) {
      if ((present[page] & 1) == 0) continue;
      const uint64_t start = window.start + page * page_size();
      append(runs, {start, start + page_size()});
    }
  }
  return {};
}

Status CommitProbe::by_halving(FileRange range, std::vector<FileRange>& runs) const {
  const std::optional<uint64_t> committed = count(range);
  if (!committed) return Status::system_error(errno, "cachestat");
  if (*committed == 0) return {};
  if (*committed == range.length() || range.length() == page_size()) {
    append(runs, range);
    return {};
  }
  const uint64_t middle = range.start + align_down(range.length() / 2, page_size());
  PGALLOC_RETURN_IF_ERROR(by_halving({range.start, middle}, runs));
  return by_halving({middle, range.end}, runs);
}

}  // namespace pgalloc
