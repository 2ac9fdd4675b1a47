// Purpose: where the contents of pending pages come from, as the loader sees it: an image, extent by
// extent.
//
// Thread safety: immutable; read_extent() may run in several threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "backing/buffer.h"
#include "base/status.h"
#include "image/format.h"

namespace pgalloc {

class ExtentSource {
 public:
  virtual ~ExtentSource() = default;

  virtual const std::vector<image::IndexEntry>& index() const = 0;
  // Whether some extents need a decoder from outside the core.
  virtual bool has_encoded_extents() const = 0;
  // The first extent that ends behind `offset` of the saved file, or index().size().
  virtual size_t first_extent_after(uint64_t offset) const = 0;
  // Reads and checks extent `i`: its stored bytes follow after one page in `buffer`.
  virtual Result<image::ExtentHead> read_extent(size_t i, Buffer& buffer) const = 0;
};

}  // namespace pgalloc
