// Purpose: images as Python's objects hold them, and bytes on their way across.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <span>
#include <string_view>

#include "imageio/image_file.h"
#include "imageio/image_stream.h"

namespace pgalloc::binding {

struct OpenImage {
  std::shared_ptr<const ImageFile> file;
};

// The bytes of the last feed() stay alive, because the stream looks into them.
struct StreamImage {
  ImageStream stream;
  pybind11::bytes fed;
};

inline std::span<const char> as_span(const pybind11::bytes& bytes) {
  return std::string_view(bytes);
}
inline pybind11::bytes as_bytes(std::span<const char> span) { return {span.data(), span.size()}; }

}  // namespace pgalloc::binding
