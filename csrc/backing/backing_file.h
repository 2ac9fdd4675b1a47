// Purpose: the file that holds the pages: a memfd, a file on disk, or a descriptor a caller gave.
//
// Thread safety: any thread, except that grow() and close() are externally synchronised (MemoryFile
// lets no operation run into close()).
//
// Invariants
//   1. The file never shrinks after construction.
//   2. size() is what ftruncate last set; it may be read without any lock.
//   3. Its number may be closed from outside, and be another file's then: that one is not read, written,
//      punched, grown, mapped, sent or closed. Pages that are mapped are written and punched through the
//      mapping then; all else is an error that says so.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "backing/chunk_map.h"
#include "base/status.h"
#include "base/units.h"
#include "os/descriptor.h"

namespace pgalloc {

// That a descriptor of pgalloc's, `fd`, is another file's by now.
Status lost_descriptor(int fd);

class BackingFile {
 public:
  // Each leaves a file of size 0. On failure nothing is left behind, and an adopted descriptor is
  // still the caller's (row A1).
  static Result<std::unique_ptr<BackingFile>> create_memfd();
  static Result<std::unique_ptr<BackingFile>> open_path(const std::string& path);
  static Result<std::unique_ptr<BackingFile>> adopt(int fd);
  // Works on a descriptor of its own for the same file; `fd` stays the caller's in any case.
  static Result<std::unique_ptr<BackingFile>> duplicate(int fd);
  ~BackingFile();
  BackingFile(const BackingFile&) = delete;
  BackingFile& operator=(const BackingFile&) = delete;

  int fd() const { return descriptor_.fd(); }
  const os::Descriptor& descriptor() const { return descriptor_; }
  // EBADF, in words, if the number is another file's by now.
  Status check() const;
  // Where the pages are mapped, which must outlive the file: see invariant 3.
  void use_mapping(const ChunkMap& chunks) { chunks_ = &chunks; }
  uint64_t size() const { return size_.load(std::memory_order_acquire); }
  // Whether pages live in memory (shmem), so that the page cache is the truth about them. On a disk
  // file system the page cache comes and goes, and only the file system knows what is stored.
  bool in_memory() const { return in_memory_; }
  // After a later step of construction failed: give an adopted descriptor back, remove a new file.
  void disown();

  // Whether an allocation has to ask for its blocks: a file system that is full would else be noticed
  // at the first touch (SIGBUS). A memfd has no bound of its own.
  bool needs_blocks() const { return needs_blocks_; }

  // EFBIG beyond size_limit().
  Status grow(uint64_t size);
  // What this process may make of a file (ulimit -f), in whole pages; nothing if any size.
  static std::optional<uint64_t> size_limit();
  Status commit(FileRange range);  // fallocate
  // Reserves the blocks of these pages; ENOSPC if the file system has no room for them. False if it
  // cannot reserve any (NFS), and seems to have that many.
  Result<bool> need_blocks(FileRange range);
  Status punch(FileRange range);  // gives the pages back; they read as zero afterwards
  Status write(FileRange range, const char* data);
  // Writes zeros over whatever is stored in `range`; holes stay holes.
  Status write_zeros(FileRange range);
  Status map(ChunkMap& chunks, FileRange range) const;
  Result<uint64_t> stored_bytes() const;  // row H1: st_blocks * 512
  void close();

 private:
  BackingFile(os::Descriptor descriptor, bool in_memory, bool needs_blocks, bool adopted,
              std::string created_path)
      : descriptor_(std::move(descriptor)),
        in_memory_(in_memory),
        needs_blocks_(needs_blocks),
        adopted_(adopted),
        created_path_(std::move(created_path)) {}
  static Result<std::unique_ptr<BackingFile>> truncated(int fd, bool adopted,
                                                        std::string created_path);

  bool is_mapped(FileRange range) const {
    return chunks_ != nullptr && !range.empty() && chunks_->is_mapped(range);
  }

  os::Descriptor descriptor_;
  const ChunkMap* chunks_ = nullptr;
  std::atomic<uint64_t> size_{0};
  const bool in_memory_;
  const bool needs_blocks_;
  const bool adopted_;
  const std::string created_path_;  // empty unless construction created the file
};

// Writes so that the pages which it commits are as large as the mapping's advice says: write() knows nothing
// of that, and gives small ones.
Status write_as_advised(BackingFile& file, ChunkMap& chunks, FileRange range, const char* data);

}  // namespace pgalloc
