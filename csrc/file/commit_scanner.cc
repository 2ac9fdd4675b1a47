#include "file/commit_scanner.h"

#include <algorithm>
#include <new>

#include "file/operation.h"

namespace pgalloc {
namespace {

constexpr size_t kSegmentsPerBatch = 4096;
constexpr size_t kRunsPerLock = 512;

// Row H2.
constexpr std::chrono::nanoseconds kScanIntervalMin = std::chrono::milliseconds(10);
constexpr int kScanTimeShare = 8;

}  // namespace

Result<bool> CommitScanner::update(const std::vector<uint32_t>* memcg_ids) {
  std::optional<Operation> operation;
  PGALLOC_RETURN_IF_ERROR(Operation::begin(state_, operation));
  if (!state_.accounting) return true;
  const Result<uint64_t> stored = file_.stored_bytes();
  if (!stored.ok()) return Status::system_error(stored.status().error_number(), "fstat");

  Due due{.counting = true, .any = true, .stored_bytes = *stored, .changes = 0};
  {
    FileLock lock(state_);
    due.counting = !nothing_to_count(*stored);
    if (!due.counting && !huge_usage_.needed()) return true;
    due.any = due.counting || !huge_usage_.current(*stored);
    due.changes = state_.changes.number();
  }
  if (memcg_ids == nullptr) return scan_all(due);
  MutexLock scan_lock(scan_mu_);
  if (due.counting) PGALLOC_RETURN_IF_ERROR(scan(memcg_ids));
  if (huge_usage_.needed()) huge_usage_.look(due.stored_bytes, due.changes);
  return true;
}

bool CommitScanner::nothing_to_count(uint64_t stored_bytes) const {
  if (stored_bytes == state_.pages.known_committed_bytes()) return true;
  return state_.changes.number() == scanned_changes_ && stored_bytes == scanned_bytes_;
}

Result<bool> CommitScanner::scan_all(const Due& due) {
  if (full_scan_runs_.exchange(true)) return !due.any;
  const struct Running {
    std::atomic<bool>& flag;
    ~Running() { flag = false; }  // memory may run out in between
  } running{full_scan_runs_};
  MutexLock scan_lock(scan_mu_);
  const auto begin = clock_.now();
  {
    FileLock lock(state_);
    if (begin < next_scan_) return !due.any;
  }
  Status status = due.counting ? scan(nullptr) : Status();
  if (status.ok() && huge_usage_.needed()) huge_usage_.look(due.stored_bytes, due.changes);
  const auto end = clock_.now();
  FileLock lock(state_);
  // Armed when the scan is over, so that a slow one cannot overlap the next.
  next_scan_ = end + std::max(kScanIntervalMin, (end - begin) * kScanTimeShare);
  PGALLOC_RETURN_IF_ERROR(std::move(status));
  scanned_changes_ = due.changes;
  scanned_bytes_ = due.stored_bytes;
  return true;
}

Status CommitScanner::scan(const std::vector<uint32_t>* memcg_ids) try {
  CommitProbe probe(file_, chunks_);
  std::vector<FileRange> runs;
  Status status;
  uint64_t from = 0;
  while (status.ok()) {
    std::vector<Segment> batch;
    {
      FileLock lock(state_);
      state_.changes.begin_batch();
      batch = collect(from, memcg_ids);
    }
    if (batch.empty()) break;
    from = batch.back().range.end;
    runs.clear();
    status = find_new(probe, batch, runs);
    book(runs, memcg_ids);
  }
  finish_scan();
  return status;
} catch (const std::bad_alloc&) {
  finish_scan();
  throw;
}

void CommitScanner::finish_scan() {
  FileLock lock(state_);
  state_.changes.end_scan();
  ++state_.stats.scans;
  reclaimer_.wake_if_due();
}

std::vector<CommitScanner::Segment> CommitScanner::collect(
    uint64_t from, const std::vector<uint32_t>* memcg_ids) const {
  std::vector<Segment> batch;
  for (auto segment = state_.pages.usage().lower_bound_segment(from);
       segment.ok() && batch.size() < kSegmentsPerBatch; segment = segment.next()) {
    const PageUse& use = segment.value();
    const bool passes = memcg_ids == nullptr || std::find(memcg_ids->begin(), memcg_ids->end(),
                                                          use.memcg_id) != memcg_ids->end();
    // At 0 references only what was subreleased is of interest, which is of no memory cgroup.
    const bool wanted = use.refs > 0 ? passes : memcg_ids == nullptr;
    batch.push_back({segment.range(), use.committed, wanted && !use.committed});
  }
  return batch;
}

uint64_t CommitScanner::known_bytes(std::span<const Segment> segments) {
  uint64_t bytes = 0;
  for (const Segment& segment : segments) {
    if (segment.committed) bytes += segment.range.length();
  }
  return bytes;
}

// Appends the committed runs of the wanted segments. Where the kernel counts what is known already,
// there is nothing to find; so the cost follows what is new, not how fragmented the file is.
Status CommitScanner::find_new(CommitProbe& probe, std::span<const Segment> segments,
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

void CommitScanner::book(const std::vector<FileRange>& runs,
                         const std::vector<uint32_t>* memcg_ids) {
  std::vector<FileRange> unchanged;  // parts of a run
  for (size_t first = 0; first < runs.size(); first += kRunsPerLock) {
    FileLock lock(state_);
    const size_t last = std::min(runs.size(), first + kRunsPerLock);
    for (size_t i = first; i < last; ++i) {
      unchanged.clear();
      state_.changes.visit_unchanged(runs[i], [&](FileRange part) { unchanged.push_back(part); });
      for (const FileRange& part : unchanged) {
        state_.pages.mark_committed(part, memcg_ids);
        if (memcg_ids == nullptr) state_.pages.reclaim_again(part);
      }
      if (unchanged.size() != 1 || unchanged.front() != runs[i]) ++state_.stats.voided_results;
    }
  }
}

void CommitScanner::reset_throttle() {
  FileLock lock(state_);
  next_scan_ = {};
}

std::optional<std::string> CommitScanner::verify() const {
  if (auto broken = huge_usage_.verify()) return broken;
  if (scanned_changes_ == kNeverScanned || scanned_changes_ <= state_.changes.number()) return {};
  return "the last scan saw changes that are yet to come";
}

}  // namespace pgalloc
