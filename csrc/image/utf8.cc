#include "image/utf8.h"

#include <cstddef>
#include <cstdint>

namespace pgalloc::image {
namespace {

// The length of the character that begins with `lead`; 0 if none does.
size_t length_of(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;
  if (lead < 0xE0) return 2;
  if (lead < 0xF0) return 3;
  return lead < 0xF5 ? 4 : 0;
}

// Some leads restrict the second byte further than to 80..BF.
bool may_follow(uint8_t lead, uint8_t second) {
  const uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;   // else a longer form
  const uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;  // surrogate; too large
  return low <= second && second <= high;
}

}  // namespace

bool is_utf8(std::string_view bytes) {
  for (size_t i = 0; i < bytes.size();) {
    const auto byte = [&](size_t k) { return static_cast<uint8_t>(bytes[i + k]); };
    const size_t length = length_of(byte(0));
    if (length == 0 || length > bytes.size() - i) return false;
    if (length > 1 && !may_follow(byte(0), byte(1))) return false;
    for (size_t k = 2; k < length; ++k) {
      if ((byte(k) & 0xC0) != 0x80) return false;
    }
    i += length;
  }
  return true;
}

}  // namespace pgalloc::image
