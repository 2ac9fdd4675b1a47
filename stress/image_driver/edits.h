// Purpose: what may have happened to an image: by chance, or by an author who knows the format.
//
// Thread safety: externally synchronised.
#pragma once

#include <string>

#include "image_driver/build.h"
#include "torture/random.h"

namespace pgalloc::image_driver {

// All change *bytes, a copy of image.bytes, and return what they did.

// Damage: the checksums stay as they are, so no reader may believe the result.
const char* damage(const Image& image, torture::Random& random, std::string* bytes);

// Forgery: fields take other values, and the checksums fit them again. The result may be valid.
const char* forge(const Image& image, torture::Random& random, std::string* bytes);

// The same with whole parts: dropped, doubled, out of place, longer or shorter than they may be.
const char* rebuild(const Image& image, torture::Random& random, std::string* bytes);

}  // namespace pgalloc::image_driver
