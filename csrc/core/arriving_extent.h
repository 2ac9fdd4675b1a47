// Purpose: MemoryFile::ArrivingExtent, an extent of an image that one thread is bringing into a
// file. For load.cc, and for the binding, which decodes encoded ones.
//
// Thread safety: an object is for one thread. It must not outlive the file, but may its closing.
//
// Invariants
//   1. While it exists, `parts` are arriving: nobody else loads, punches or reuses them.
//   2. Whoever drops it unfinished gives them back: they wait again.
#pragma once

#include <span>
#include <vector>

#include "core/memory_file.h"

namespace pgalloc {

class MemoryFile::ArrivingExtent {
 public:
  ~ArrivingExtent();
  ArrivingExtent(const ArrivingExtent&) = delete;
  ArrivingExtent& operator=(const ArrivingExtent&) = delete;

  std::span<const char> encoded() const {
    return {buffer_.data() + page_size(), head_.stored_length};
  }
  uint64_t raw_length() const { return head_.raw_length(); }
  // The extent arrives as `raw`, raw_length() bytes; or it is broken, and why.
  void deliver(std::span<const char> raw);
  void fail(Status status);

 private:
  friend class MemoryFile;
  ArrivingExtent(MemoryFile& file, std::shared_ptr<const ImageFile> image, size_t index,
                 std::vector<FileRange> parts) REQUIRES(file.mu_)
      : file_(file), image_(std::move(image)), index_(index), parts_(std::move(parts)) {}

  MemoryFile& file_;
  const std::shared_ptr<const ImageFile> image_;
  const size_t index_;
  const std::vector<FileRange> parts_;
  image::ExtentHead head_;
  Buffer buffer_;
  bool settled_ = false;
};

}  // namespace pgalloc
