#include "base/crc32c.h"
#include "image/checks.h"
#include "image/decode.h"
#include "image/layout.h"

namespace pgalloc::image {
namespace {

Status trailer_error(const char* what) {
  return corrupt(std::string("the image's trailer: ") + what);
}
Status index_error(const char* what) { return corrupt(std::string("the image's index: ") + what); }

// Where the index is, and that what the trailer counts can be there. The numbers may be anything,
// so the differences are compared, never sums.
Status check_places(const Header& header, const layout::Trailer& fields) {
  if (!is_aligned(fields.index_offset, page_size())) {
    return trailer_error("the index starts within a page");
  }
  if (fields.index_offset < header.first_extent()) {
    return trailer_error("the index starts before the first extent");
  }
  if (fields.image_size <= fields.index_offset) {
    return trailer_error("the index starts behind the image");
  }
  const uint64_t smallest_extent = 2 * page_size();
  if (fields.extent_count > (fields.index_offset - header.first_extent()) / smallest_extent) {
    return trailer_error("more extents than there is room for");
  }
  if (fields.image_size - fields.index_offset != index_bytes(fields.extent_count) + page_size()) {
    return trailer_error("the index and the image do not end where they should");
  }
  return {};
}

}  // namespace

Result<Trailer> decode_trailer(const Header& header, Bytes page, uint64_t image_size) {
  if (page.size() < page_size()) return trailer_error("not a whole page");
  page = page.first(page_size());
  const auto fields = load<layout::Trailer>(page);
  if (fields.magic != layout::kTrailerMagic) {
    return trailer_error("wrong magic; the image is incomplete, or something follows it");
  }
  if (checksum_without(page, offsetof(layout::Trailer, crc)) != fields.crc) {
    return trailer_error("wrong checksum");
  }
  if (!all_zero(fields.zero) || !all_zero(page.subspan(sizeof fields))) {
    return trailer_error("bytes that should be zero");
  }
  if (fields.header_crc != header.crc) return trailer_error("belongs to another header");
  if (image_size != 0 && fields.image_size != image_size) {
    return trailer_error("the image has another size");
  }
  PGALLOC_RETURN_IF_ERROR(check_places(header, fields));
  const uint64_t file_pages = header.file_size / page_size();
  if (fields.stored_pages > file_pages ||
      fields.zero_pages_skipped > file_pages - fields.stored_pages) {
    return trailer_error("more pages than the file has");
  }
  return Trailer{fields.index_offset, fields.extent_count,       fields.image_size,
                 fields.stored_pages, fields.zero_pages_skipped, fields.index_crc,
                 fields.header_crc};
}

Result<std::vector<IndexEntry>> decode_index(const Header& header, const Trailer& trailer,
                                             Bytes bytes) {
  if (bytes.size() != index_bytes(trailer.extent_count)) return index_error("not all of it");
  if (crc32c(bytes.data(), bytes.size()) != trailer.index_crc) {
    return index_error("wrong checksum");
  }
  const auto front = load<layout::IndexFront>(bytes);
  if (front.magic != layout::kIndexMagic) return index_error("wrong magic");
  if (front.extent_count != trailer.extent_count) {
    return index_error("counts other extents than the trailer");
  }
  const Bytes rest = bytes.subspan(sizeof front);
  if (!all_zero(front.zero) ||
      !all_zero(rest.subspan(front.extent_count * sizeof(layout::IndexEntry)))) {
    return index_error("bytes that should be zero");
  }

  std::vector<IndexEntry> entries;
  entries.reserve(front.extent_count);
  uint64_t offset = header.first_extent();
  uint64_t reached = 0;
  uint64_t stored_pages = 0;
  for (uint64_t i = 0; i < front.extent_count; ++i) {
    const auto fields = load<layout::IndexEntry>(rest.subspan(i * sizeof(layout::IndexEntry)));
    const auto mistake = [&](const char* what) {
      return corrupt("entry " + std::to_string(i) + " of the image's index " + what);
    };
    if (const char* what = extent_mistake(header, fields)) return mistake(what);
    const IndexEntry entry{{fields.start, fields.start + fields.page_count * page_size()},
                           fields.offset,
                           static_cast<Encoding>(fields.encoding),
                           fields.stored_length,
                           fields.stored_pages,
                           fields.head_crc};
    if (entry.range.end <= reached) return mistake("is out of order");
    if (entry.range.start < reached) return mistake("overlaps the one before it");
    if (entry.offset != offset) return mistake("does not begin where the one before it ends");
    if (page_size() + entry.stored_bytes() > trailer.index_offset - offset) {
      return mistake("goes beyond the extents");
    }
    entries.push_back(entry);
    offset = entry.end();
    reached = entry.range.end;
    stored_pages += entry.stored_pages;
  }
  if (offset != trailer.index_offset) return index_error("bytes between the extents and the index");
  if (stored_pages != trailer.stored_pages) {
    return index_error("counts other pages than the trailer");
  }
  return entries;
}

bool begins_index(Bytes page) {
  return page.size() >= sizeof(layout::IndexFront) &&
         load<layout::IndexFront>(page).magic == layout::kIndexMagic;
}

uint64_t peek_extent_count(Bytes index_page) {
  return load<layout::IndexFront>(index_page).extent_count;
}

Status check_same(const IndexEntry& entry, const ExtentHead& head) {
  if (entry == index_entry(head)) return {};
  return corrupt("the index does not say the same as the extent at byte " +
                 std::to_string(head.offset) + " of the image");
}

}  // namespace pgalloc::image
