// Purpose: room for the bytes of an extent: grows, is never cleared, and is aligned to pages.
//
// Thread safety: externally synchronised.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

#include "base/units.h"

namespace pgalloc {

class Buffer {
 public:
  char* data() const { return bytes_.get(); }
  // At least `size` bytes; what was in there is lost if there were fewer.
  char* reserve(size_t size) {
    if (size <= size_) return data();
    size = align_up(size, page_size());
    bytes_.reset();
    size_ = 0;
    bytes_.reset(static_cast<char*>(std::aligned_alloc(page_size(), size)));
    if (bytes_ == nullptr) throw std::bad_alloc();
    size_ = size;
    return data();
  }

 private:
  struct Free {
    void operator()(char* bytes) const { std::free(bytes); }
  };
  std::unique_ptr<char, Free> bytes_;
  size_t size_ = 0;
};

}  // namespace pgalloc
