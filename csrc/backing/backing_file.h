// Purpose: the file that holds the pages: a memfd, a file on disk, or a descriptor a caller gave.
//
// Thread safety: any thread, except that grow() and close() are externally synchronised (MemoryFile
// lets no operation run into close()).
//
// Invariants
//   1. The file never shrinks after construction.
//   2. size() is what ftruncate last set; it may be read without any lock.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "base/status.h"
#include "base/units.h"

namespace pgalloc {

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

  int fd() const { return fd_; }
  uint64_t size() const { return size_.load(std::memory_order_acquire); }
  // Whether pages live in memory (shmem), so that the page cache is the truth about them. On a disk
  // file system the page cache comes and goes, and only the file system knows what is stored.
  bool in_memory() const { return in_memory_; }
  // After a later step of construction failed: give an adopted descriptor back, remove a new file.
  void disown();

  Status grow(uint64_t size);
  Status commit(FileRange range);  // fallocate
  Status punch(FileRange range);   // gives the pages back; they read as zero afterwards
  Status write(FileRange range, const char* data);
  // Writes zeros over whatever is stored in `range`; holes stay holes.
  Status write_zeros(FileRange range);
  Result<uint64_t> stored_bytes() const;  // row H1: st_blocks * 512
  void close();

 private:
  BackingFile(int fd, bool in_memory, bool adopted, std::string created_path)
      : fd_(fd), in_memory_(in_memory), adopted_(adopted), created_path_(std::move(created_path)) {}
  static Result<std::unique_ptr<BackingFile>> truncated(int fd, bool adopted,
                                                        std::string created_path);

  int fd_;
  std::atomic<uint64_t> size_{0};
  const bool in_memory_;
  const bool adopted_;
  const std::string created_path_;  // empty unless construction created the file
};

}  // namespace pgalloc
