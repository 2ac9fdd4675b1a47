// Purpose: fields of an image by their offsets, for those who forge one.
//
// Thread safety: any thread.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "base/crc32c.h"
#include "base/units.h"

namespace pgalloc::image_driver {

inline uint64_t number(const std::string& bytes, uint64_t at, size_t size) {
  uint64_t value = 0;
  std::memcpy(&value, bytes.data() + at, size);
  return value;
}

inline void set(std::string* bytes, uint64_t at, size_t size, uint64_t value) {
  std::memcpy(bytes->data() + at, &value, size);
}

inline uint32_t crc_of(const std::string& bytes, uint64_t begin, uint64_t end) {
  return crc32c(bytes.data() + begin, end - begin);
}

// Makes the checksum at `field` of the page at `page` that of the page.
inline void seal_page(std::string* bytes, uint64_t page, uint64_t field) {
  set(bytes, page + field, 4, 0);
  set(bytes, page + field, 4, crc_of(*bytes, page, page + page_size()));
}

}  // namespace pgalloc::image_driver
