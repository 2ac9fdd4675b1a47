// Purpose: valid images of every kind, made by the encoders.
//
// Thread safety: externally synchronised.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "image_driver/contents.h"
#include "torture/random.h"

namespace pgalloc::image_driver {

// An image in memory, and where its parts are.
struct Image {
  std::string bytes;
  Contents contents;
  std::vector<uint64_t> hooks;  // where each begins
  std::vector<uint64_t> heads;
  uint64_t index = 0;
  uint64_t trailer = 0;
};

Image build_image(torture::Random& random);
// One of the smallest that has every part.
Image build_small_image(torture::Random& random);

}  // namespace pgalloc::image_driver
