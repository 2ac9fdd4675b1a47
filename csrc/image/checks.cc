#include "image/checks.h"

#include "base/crc32c.h"
#include "image/layout.h"

namespace pgalloc::image {

bool all_zero(Bytes bytes) {
  // Each byte equals the next, and the first is zero.
  return bytes.empty() ||
         (bytes[0] == 0 && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

uint32_t checksum_without(Bytes page, size_t field) {
  constexpr uint32_t kZero = 0;
  const Bytes after = page.subspan(field + sizeof kZero);
  uint32_t crc = crc32c(page.data(), field);
  crc = crc32c(&kZero, sizeof kZero, crc);
  return crc32c(after.data(), after.size(), crc);
}

template <class Layout>
const char* extent_mistake(const Header& header, const Layout& fields) {
  const uint64_t length = fields.page_count * page_size();  // cannot wrap: 32 bits by a page
  const uint64_t raw_length = fields.stored_pages * page_size();
  if (!is_aligned(fields.start, page_size())) return "starts within a page";
  if (fields.page_count == 0) return "stands for no page";
  if (fields.start >= header.file_size || length > header.file_size - fields.start) {
    return "goes beyond the file";
  }
  if (length > kExtentSpan) return "stands for too many pages";
  if (fields.start / kExtentSpan != (fields.start + length - 1) / kExtentSpan) {
    return "crosses a multiple of 4 MiB";
  }
  if (fields.stored_pages == 0) return "stores no page";
  if (fields.stored_pages > fields.page_count) return "stores more pages than it stands for";
  switch (static_cast<Encoding>(fields.encoding)) {
    case Encoding::kRaw:
      return fields.stored_length == raw_length ? nullptr : "has not the length of its pages";
    case Encoding::kZstd:
      if (fields.stored_length == 0) return "has no frame";
      return fields.stored_length < raw_length ? nullptr : "has a frame longer than its pages";
  }
  return "has an unknown encoding";
}

template const char* extent_mistake(const Header&, const layout::ExtentHead&);
template const char* extent_mistake(const Header&, const layout::IndexEntry&);

}  // namespace pgalloc::image
