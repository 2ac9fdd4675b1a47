// Purpose: finds out what the owners of pages have committed by touching them, and books it
// (section H).
//
// Thread safety: any thread.
//
// A scan runs in batches: note some segments under the lock, ask the kernel about them without it,
// book what was found under the lock again. A look at what is in huge pages belongs to it.
//
// What was subreleased and is committed all the same is given back once more (see Waste).
//
// Invariants
//   1. A result is booked only for pages that have not changed while the scan looked (row H3).
//   2. One scan runs at a time; full scans take at most an eighth of the time (row H2).
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backing/backing_file.h"
#include "backing/chunk_map.h"
#include "backing/commit_probe.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "file/file_state.h"
#include "file/huge_usage.h"
#include "file/reclaimer.h"

namespace pgalloc {

class CommitScanner {
 public:
  CommitScanner(FileState& state, const BackingFile& file, const ChunkMap& chunks,
                Reclaimer& reclaimer, Clock& clock)
      : state_(state),
        file_(file),
        chunks_(chunks),
        reclaimer_(reclaimer),
        clock_(clock),
        huge_usage_(state, file, chunks) {}
  CommitScanner(const CommitScanner&) = delete;
  CommitScanner& operator=(const CommitScanner&) = delete;

  // With `memcg_ids`, only pages that one of them pays for. True when the account is current, false
  // when a scan was due but may not run yet (too soon after the last one, or another is under way).
  // Without accounting there is nothing to find: true.
  Result<bool> update(const std::vector<uint32_t>* memcg_ids) EXCLUDES(file_lock, scan_mu_);
  const HugeUsage& huge_usage() const { return huge_usage_; }
  // Forgets what the clock said about the next scan.
  void reset_throttle() EXCLUDES(file_lock);

  // What is broken of what it remembers.
  std::optional<std::string> verify() const REQUIRES(file_lock);

 private:
  struct Segment {
    FileRange range;
    bool committed;  // known already
    bool wanted;     // not known to be committed, and passes the filter
  };
  static uint64_t known_bytes(std::span<const Segment> segments);
  static Status find_new(CommitProbe& probe, std::span<const Segment> segments,
                         std::vector<FileRange>& runs);
  bool nothing_to_count(uint64_t stored_bytes) const REQUIRES(file_lock);
  // What there is to do, and what there was before that.
  struct Due {
    bool counting;  // else only the look at huge pages
    bool any;       // else nothing of ours has changed: a look, if the clock allows
    uint64_t stored_bytes;
    uint64_t changes;
  };
  Result<bool> scan_all(const Due& due) EXCLUDES(file_lock, scan_mu_);
  Status scan(const std::vector<uint32_t>* memcg_ids) REQUIRES(scan_mu_) EXCLUDES(file_lock);
  void finish_scan() EXCLUDES(file_lock);
  std::vector<Segment> collect(uint64_t from, const std::vector<uint32_t>* memcg_ids) const
      REQUIRES(file_lock);
  void book(const std::vector<FileRange>& runs, const std::vector<uint32_t>* memcg_ids)
      EXCLUDES(file_lock);

  FileState& state_;
  const BackingFile& file_;
  const ChunkMap& chunks_;
  Reclaimer& reclaimer_;
  Clock& clock_;
  HugeUsage huge_usage_;
  Mutex scan_mu_{LockRank::kScan};
  std::atomic<bool> full_scan_runs_{false};
  static constexpr uint64_t kNeverScanned = UINT64_MAX;
  // Changes and stored bytes as the last full scan found them.
  uint64_t scanned_changes_ GUARDED_BY(file_lock) = kNeverScanned;
  uint64_t scanned_bytes_ GUARDED_BY(file_lock) = 0;
  std::chrono::nanoseconds next_scan_ GUARDED_BY(file_lock){0};
};

}  // namespace pgalloc
