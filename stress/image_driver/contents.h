// Purpose: what an image says, in the words of the file that was saved. Every reader of an image ends
// here: the builder knows it beforehand, the decoders and the oracle find it out.
//
// Thread safety: values only.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "image/format.h"

namespace pgalloc::image_driver {

struct Extent {
  FileRange range;
  uint32_t encoding = 0;
  std::vector<uint64_t> stored_pages;  // numbered within the range
  std::string_view data;               // within the image

  friend bool operator==(const Extent&, const Extent&) = default;
};

struct Contents {
  uint64_t file_size = 0;
  image::Metadata metadata;
  std::vector<Extent> extents;
  uint64_t zero_pages_skipped = 0;

  friend bool operator==(const Contents&, const Contents&) = default;
};

}  // namespace pgalloc::image_driver
