// Purpose: docs/image-format.md written down once more, in the most obvious way: reads fields by
// their offsets in the document, computes with 128 bits, and knows no more of the code under test
// than the portable checksum.
//
// Thread safety: any thread.
#pragma once

#include <optional>
#include <string_view>

#include "image_driver/contents.h"

namespace pgalloc::image_driver {

// What `image` says, if it is a valid image.
std::optional<Contents> consult(std::string_view image);

}  // namespace pgalloc::image_driver
