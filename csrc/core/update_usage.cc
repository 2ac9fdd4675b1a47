// Section H: finding out what the owners of pages have committed by touching them.
//
// The scan runs in batches: note some segments under the lock, ask the kernel about them without
// it, book what was found under the lock again, leaving out what changed in between.
#include <algorithm>
#include <span>

#include "core/commit_probe.h"
#include "core/memory_file.h"
#include "core/operation.h"

namespace pgalloc {

struct MemoryFile::ScanSegment {
  FileRange range;
  bool committed;  // known already
  bool wanted;     // referenced, not known to be committed, and passes the filter
};

namespace {

constexpr size_t kSegmentsPerBatch = 4096;
constexpr size_t kRunsPerLock = 512;
constexpr size_t kDisturbedMax = 65536;  // beyond it, everything counts as disturbed

// Row H2.
constexpr std::chrono::nanoseconds kScanIntervalMin = std::chrono::milliseconds(10);
constexpr int kScanTimeShare = 8;

template <class Segment>
uint64_t known_bytes(std::span<const Segment> segments) {
  uint64_t bytes = 0;
  for (const Segment& segment : segments) {
    if (segment.committed) bytes += segment.range.length();
  }
  return bytes;
}

// Appends the committed runs of the wanted segments. Where the kernel counts what is known already,
// there is nothing to find; so the cost follows what is new, not how fragmented the file is.
template <class Segment>
Status find_new(CommitProbe& probe, std::span<const Segment> segments,
                std::vector<FileRange>& runs) {
  const bool any = std::any_of(segments.begin(), segments.end(),
                               [](const Segment& segment) { return segment.wanted; });
  if (!any) return {};
  if (segments.size() == 1) return probe.find_runs(segments.front().range, runs);
  const auto counted = probe.count({segments.front().range.start, segments.back().range.end});
  if (counted == known_bytes(segments)) return {};
  const size_t half = segments.size() / 2;
  PGALLOC_RETURN_IF_ERROR(find_new(probe, segments.first(half), runs));
  return find_new(probe, segments.subspan(half), runs);
}

}  // namespace

Result<bool> MemoryFile::update_usage(const std::vector<uint32_t>* memcg_ids) {
  std::optional<Operation> operation;
  PGALLOC_RETURN_IF_ERROR(begin_operation(operation));
  const Result<uint64_t> stored = file_->stored_bytes();
  if (!stored.ok()) return Status::system_error(stored.status().error_number(), "fstat");

  uint64_t changes_before = 0;
  {
    MutexLock lock(mu_);
    if (nothing_to_count(*stored)) return true;
    changes_before = changes_;
  }
  if (memcg_ids != nullptr) {
    MutexLock scan_lock(scan_mu_);
    PGALLOC_RETURN_IF_ERROR(scan(memcg_ids));
    return true;
  }

  if (full_scan_runs_.exchange(true)) return false;
  Status status;
  bool too_soon = false;
  {
    MutexLock scan_lock(scan_mu_);
    const auto begin = clock_.now();
    {
      MutexLock lock(mu_);
      too_soon = begin < next_scan_;
    }
    if (!too_soon) {
      status = scan(nullptr);
      const auto end = clock_.now();
      MutexLock lock(mu_);
      // Armed when the scan is over, so that a slow one cannot overlap the next.
      next_scan_ = end + std::max(kScanIntervalMin, (end - begin) * kScanTimeShare);
      if (status.ok()) {
        scanned_changes_ = changes_before;
        scanned_bytes_ = *stored;
      }
    }
  }
  full_scan_runs_ = false;
  PGALLOC_RETURN_IF_ERROR(std::move(status));
  return !too_soon;
}

bool MemoryFile::nothing_to_count(uint64_t stored_bytes) const {
  if (stored_bytes == pages_.known_committed_bytes()) return true;
  return changes_ == scanned_changes_ && stored_bytes == scanned_bytes_;
}

Status MemoryFile::scan(const std::vector<uint32_t>* memcg_ids) {
  CommitProbe probe(*file_, *chunks_);
  std::vector<FileRange> runs;
  Status status;
  uint64_t from = 0;
  while (status.ok()) {
    std::vector<ScanSegment> batch;
    {
      MutexLock lock(mu_);
      disturbed_.clear();
      scanning_ = true;
      batch = collect(from, memcg_ids);
    }
    if (batch.empty()) break;
    from = batch.back().range.end;
    runs.clear();
    status = find_new(probe, std::span<const ScanSegment>(batch), runs);
    apply(runs, memcg_ids);
  }
  MutexLock lock(mu_);
  scanning_ = false;
  disturbed_.clear();
  ++stats_.scans;
  return status;
}

std::vector<MemoryFile::ScanSegment> MemoryFile::collect(
    uint64_t from, const std::vector<uint32_t>* memcg_ids) const {
  std::vector<ScanSegment> batch;
  for (auto segment = pages_.usage().lower_bound_segment(from);
       segment.ok() && batch.size() < kSegmentsPerBatch; segment = segment.next()) {
    const PageUse& use = segment.value();
    const bool passes = memcg_ids == nullptr || std::find(memcg_ids->begin(), memcg_ids->end(),
                                                          use.memcg_id) != memcg_ids->end();
    batch.push_back({segment.range(), use.committed, passes && use.refs > 0 && !use.committed});
  }
  return batch;
}

void MemoryFile::apply(const std::vector<FileRange>& runs, const std::vector<uint32_t>* memcg_ids) {
  std::vector<FileRange> sound;  // the parts of a run that nothing disturbed
  for (size_t first = 0; first < runs.size(); first += kRunsPerLock) {
    MutexLock lock(mu_);
    const size_t last = std::min(runs.size(), first + kRunsPerLock);
    for (size_t i = first; i < last; ++i) {
      sound.clear();
      disturbed_.visit_gaps_in(runs[i], [&](FileRange part) { sound.push_back(part); });
      for (const FileRange& part : sound) pages_.mark_committed(part, memcg_ids);
      if (sound.size() != 1 || sound.front() != runs[i]) ++stats_.voided_results;
    }
  }
}

void MemoryFile::disturb(FileRange range) {
  if (!scanning_) return;
  disturbed_.remove_range(range);
  if (disturbed_.size() >= kDisturbedMax) {
    disturbed_.clear();
    range = {0, kMaxOffset};
  }
  disturbed_.insert(range, {});
}

}  // namespace pgalloc
