// Purpose: ask the kernel which pages of the backing file are committed, in the cheapest way that
// is still exact.
//
// Thread safety: an object is for one thread.
//
// What each way of asking sees on shmem:
//   cachestat (Linux 6.5)  every page, fallocated and swapped ones too, but only as a count
//   PAGEMAP_SCAN (6.7)     runs in this process's own page tables; blind to the rest
//   SEEK_DATA / SEEK_HOLE  runs of written pages; blind to fallocated, untouched pages
//   mincore                written pages in the page cache; blind to fallocated and swapped pages
// So a count of nothing or of everything settles a range. A mixed range is cut into runs by
// PAGEMAP_SCAN, or by SEEK_DATA where that costs less; if that finds less than was counted, by
// SEEK_DATA or mincore; and if even these do, halving with cachestat finds the rest.
//
// On a disk file system the page cache says nothing about what is stored: SEEK_DATA alone decides.
// (cachestat counts dirty pages there; on shmem it always says 0.)
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "backing/backing_file.h"
#include "backing/chunk_map.h"
#include "backing/pagemap.h"
#include "base/status.h"
#include "base/units.h"

namespace pgalloc {

class CommitProbe {
 public:
  CommitProbe(const BackingFile& file, const ChunkMap& chunks)
      : file_(file), intact_(file.descriptor().intact()), pagemap_(chunks) {}
  CommitProbe(const CommitProbe&) = delete;
  CommitProbe& operator=(const CommitProbe&) = delete;

  // Committed bytes in `range`, or nothing where the kernel cannot count (disk, old kernels).
  std::optional<uint64_t> count(FileRange range) const;
  // The same as far as can be told everywhere: without a count, what was written. Allocates nothing.
  uint64_t count_written(FileRange range) const;
  // Appends the committed runs of `range`, in ascending order.
  // REQUIRES: range is page-aligned, not empty, inside the file.
  Status find_runs(FileRange range, std::vector<FileRange>& runs);

 private:
  Status resolve_mixed(FileRange range, uint64_t committed, std::vector<FileRange>& runs);
  Status find_written(FileRange range, uint64_t committed, std::vector<FileRange>& runs);
  bool by_pagemap(FileRange range, std::vector<FileRange>& runs);
  template <typename Visit>  // void(FileRange)
  Status visit_written(FileRange range, Visit visit) const;
  Status by_seek(FileRange range, std::vector<FileRange>& runs) const;
  Status by_mincore(FileRange range, std::vector<FileRange>& runs) const;
  Status by_halving(FileRange range, std::vector<FileRange>& runs) const;

  const BackingFile& file_;
  const bool intact_;  // else the descriptor is another file's, and nothing is known
  Pagemap pagemap_;
};

}  // namespace pgalloc
