// Purpose: whether bytes are UTF-8 as the Unicode standard defines it: shortest forms only, no
// surrogates, nothing beyond U+10FFFF. What passes is a str for Python.
//
// Thread safety: any thread.
#pragma once

#include <string_view>

namespace pgalloc::image {

bool is_utf8(std::string_view bytes);

}  // namespace pgalloc::image
