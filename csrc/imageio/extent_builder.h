// Purpose: reads the pages of one extent and keeps those that an image has to store.
//
// Thread safety: an object is for one thread.
//
// Pages are read from the file, not through a mapping: a hole that is read this way stays a hole
// (row J2), a private copy cannot change between its checksum and its way into the image, and a disk
// file that was cut off is an error and no SIGBUS.
#pragma once

#include <cstdint>
#include <span>

#include "backing/backing_file.h"
#include "backing/buffer.h"
#include "backing/chunk_map.h"
#include "backing/commit_probe.h"
#include "base/status.h"
#include "image/format.h"

namespace pgalloc {

class ExtentBuilder {
 public:
  struct Extent {
    image::ExtentHead head;   // range and map
    Buffer buffer;            // the stored pages, after one page for the head
    uint64_t zero_pages = 0;  // were there, and are left out
  };

  // keep_zeros: committed pages are stored even if they are zero.
  ExtentBuilder(const BackingFile& file, const ChunkMap& chunks, bool keep_zeros)
      : file_(file), probe_(file, chunks), keep_zeros_(keep_zeros) {}

  // REQUIRES: `parts` are ascending, page-aligned, and inside one span of an extent's grid.
  Status build(std::span<const FileRange> parts, Extent& extent);

 private:
  Status add_stored(FileRange range, Extent& extent);
  Status add_mixed(FileRange range, Extent& extent);
  Status add_run(FileRange run, Extent& extent);

  const BackingFile& file_;
  CommitProbe probe_;
  const bool keep_zeros_;
};

}  // namespace pgalloc
