// Purpose: an image read with the decoders, in the two ways the format is made for.
//
// Thread safety: any thread.
#pragma once

#include <string_view>

#include "base/status.h"
#include "image_driver/contents.h"

namespace pgalloc::image_driver {

// A check that is left out, to see whether its absence is found.
enum class Plant { kNone, kData, kUsage, kIndex };

// Knows the image's size: trailer and index before the extents.
Result<Contents> read_seeking(std::string_view image, Plant plant);
// Does not, and takes the parts as they come. Ignores what follows the image.
Result<Contents> read_forward(std::string_view image, Plant plant);

}  // namespace pgalloc::image_driver
