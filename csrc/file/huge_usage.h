// Purpose: how much of the file this process has in huge pages, as the last look at its page tables found.
//
// Thread safety: any thread; looks come one at a time.
//
// Huge pages are the mapping's: where only other processes have touched pages, or the kernel has split one
// or made one of small ones, neither the account nor the file system knows. So a look is due when the
// account may have changed, and when enough time has passed (CommitScanner has the clock).
//
// Invariants
//   1. runs_ are in order and do not touch.
//   2. What is told of them is of pages that are used and known to be committed: what is freed, decommitted
//      or discarded after a look is not counted.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "backing/backing_file.h"
#include "backing/chunk_map.h"
#include "file/file_state.h"

namespace pgalloc {

class HugeUsage {
 public:
  HugeUsage(FileState& state, const BackingFile& file, const ChunkMap& chunks)
      : state_(state), file_(file), chunks_(chunks) {}
  HugeUsage(const HugeUsage&) = delete;
  HugeUsage& operator=(const HugeUsage&) = delete;

  // Whether the file has, or had, areas for huge pages: without, there is nothing to look for.
  bool needed() const { return chunks_.ever_huge(); }
  // Whether nothing of ours has changed since the last look.
  bool current(uint64_t stored_bytes) const REQUIRES(file_lock) {
    return state_.changes.number() == seen_changes_ && stored_bytes == seen_bytes_;
  }
  // Changes and stored bytes are those from before the look. Where the kernel cannot say, nothing is found.
  void look(uint64_t stored_bytes, uint64_t changes) EXCLUDES(file_lock);

  uint64_t bytes() const REQUIRES(file_lock);
  // Of these pages, which are alike.
  uint64_t bytes_of(const PageSegment& segment) const REQUIRES(file_lock);

  // What is broken of what it remembers.
  std::optional<std::string> verify() const REQUIRES(file_lock);

 private:
  std::vector<FileRange> mapped_huge_areas() const EXCLUDES(file_lock);
  static bool counts(const PageUse& use) { return use.refs > 0 && use.committed; }

  FileState& state_;
  const BackingFile& file_;
  const ChunkMap& chunks_;
  static constexpr uint64_t kNeverLooked = UINT64_MAX;
  uint64_t seen_changes_ GUARDED_BY(file_lock) = kNeverLooked;
  uint64_t seen_bytes_ GUARDED_BY(file_lock) = 0;
  std::vector<FileRange> runs_ GUARDED_BY(file_lock);
};

}  // namespace pgalloc
