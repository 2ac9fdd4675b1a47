// Purpose: ask the kernel which pages of the backing file are committed, in the cheapest way that
// is still exact.
//
// Thread safety: any thread; no state.
//
// What each way of asking sees on shmem:
//   cachestat (Linux 6.5)  every page, fallocated and swapped ones too, but only as a count
//   SEEK_DATA / SEEK_HOLE  runs of written pages; blind to fallocated pages nobody touched
//   mincore                pages in the page cache and written; blind to fallocated and swapped
//   ones
// So a count of nothing or of everything settles a range; a mixed range is cut into runs by
// SEEK_DATA or mincore, whichever costs less there; and where these found less than was counted,
// halving with cachestat finds the rest.
//
// On a disk file system the page cache says nothing about what is stored: SEEK_DATA alone decides.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/status.h"
#include "base/units.h"
#include "core/backing_file.h"

namespace pgalloc {

class CommitProbe {
 public:
  explicit CommitProbe(const BackingFile& file) : file_(file) {}

  // Committed bytes in `range`, or nothing where the kernel cannot count (disk, old kernels).
  std::optional<uint64_t> count(FileRange range) const;
  // Appends the committed runs of `range`, in ascending order.
  // REQUIRES: range is page-aligned, not empty, inside the file.
  Status find_runs(FileRange range, std::vector<FileRange>& runs) const;

 private:
  Status resolve_mixed(FileRange range, uint64_t committed, std::vector<FileRange>& runs) const;
  Status by_seek(FileRange range, std::vector<FileRange>& runs) const;
  Status by_mincore(FileRange range, std::vector<FileRange>& runs) const;
  Status by_halving(FileRange range, std::vector<FileRange>& runs) const;

  const BackingFile& file_;
};

}  // namespace pgalloc
