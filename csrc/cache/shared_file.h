// Purpose: memory that processes share: a memfd of a fixed size and its mapping here. Its pages come as they are
// touched.
//
// Thread safety: externally synchronised; the memory itself is for those who share it.
//
// Invariants
//   1. The file keeps its size, whatever another process does: nothing that is mapped disappears.
//   2. A file of create_for_reading() is written through the mapping of the process that made it only: no other
//      can write it, nor can a child of fork, which has no such mapping (it maps the descriptor for itself).
#pragma once

#include <cstdint>
#include <utility>

#include "base/status.h"
#include "os/descriptor.h"

namespace pgalloc::cache {

class SharedFile {
 public:
  // For others to read: the kernel lets none of them write, and no page go back either, before all have let go
  // of it.
  static Result<SharedFile> create_for_reading(uint64_t size);
  // For another process to write.
  static Result<SharedFile> create_for_writing(uint64_t size);
  // One that another process made, which takes over the descriptor. kSharing if it is smaller than that.
  static Result<SharedFile> map_for_reading(os::Descriptor file, uint64_t size);
  static Result<SharedFile> map_for_writing(os::Descriptor file, uint64_t size);

  SharedFile() = default;
  SharedFile(SharedFile&& other) noexcept
      : file_(std::move(other.file_)),
        data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  SharedFile& operator=(SharedFile&& other) noexcept;
  ~SharedFile();

  int fd() const { return file_.fd(); }
  // The mapping is enough.
  void close_descriptor() { file_.close(); }
  char* data() const { return data_; }
  uint64_t size() const { return size_; }
  // In a forked child of the process that made it: the mapping is not there, and its addresses may be another's.
  void forget_in_child() {
    file_ = {};
    data_ = nullptr;
  }
  // What it takes in memory.
  Result<uint64_t> stored_bytes() const;

 private:
  static Result<SharedFile> create(uint64_t size, int seals);
  static Result<SharedFile> map(os::Descriptor file, uint64_t size, int protection);

  os::Descriptor file_;
  char* data_ = nullptr;
  uint64_t size_ = 0;
};

}  // namespace pgalloc::cache
