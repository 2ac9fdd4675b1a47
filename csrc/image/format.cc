#include "image/format.h"

#include "image/layout.h"

namespace pgalloc::image {

IndexEntry index_entry(const ExtentHead& head) {
  return {head.range,
          head.offset,
          head.encoding,
          head.stored_length,
          static_cast<uint32_t>(head.map.count()),
          head.crc};
}

uint64_t index_bytes(uint64_t extent_count) {
  return align_up(sizeof(layout::IndexFront) + extent_count * sizeof(layout::IndexEntry),
                  page_size());
}

}  // namespace pgalloc::image
