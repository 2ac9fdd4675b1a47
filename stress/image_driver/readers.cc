#include "image_driver/readers.h"

#include <algorithm>

#include "image/decode.h"

namespace pgalloc::image_driver {
namespace {

using image::Bytes;

class Reader {
 public:
  Reader(std::string_view image, Plant plant) : image_(image), plant_(plant) {}

  Result<Contents> read_seeking() {
    PGALLOC_RETURN_IF_ERROR(read_front());
    const uint64_t last = image_.size() - std::min<uint64_t>(image_.size(), page_size());
    auto trailer = image::decode_trailer(header_, bytes(last, page_size()), image_.size());
    if (!trailer.ok()) return std::move(trailer).status();
    auto index = image::decode_index(
        header_, *trailer, bytes(trailer->index_offset, image::index_bytes(trailer->extent_count)));
    if (!index.ok()) return std::move(index).status();
    for (const image::IndexEntry& entry : *index) {
      PGALLOC_RETURN_IF_ERROR(read_extent(entry.offset));
    }
    return finish(*trailer, *index);
  }

  Result<Contents> read_forward() {
    PGALLOC_RETURN_IF_ERROR(read_front());
    uint64_t offset = header_.first_extent();
    while (!image::begins_index(bytes(offset, page_size()))) {
      PGALLOC_RETURN_IF_ERROR(read_extent(offset));
      offset = heads_.back().end();
    }
    const uint64_t extents = image::peek_extent_count(bytes(offset, page_size()));
    if (extents != heads_.size()) {
      return Status::error(ErrorCode::kSnapshotCorrupt, "the index counts other extents");
    }
    const Bytes index_part = bytes(offset, image::index_bytes(extents));
    const Bytes trailer_part = bytes(offset + image::index_bytes(extents), page_size());
    auto trailer = image::decode_trailer(header_, trailer_part, 0);
    if (!trailer.ok()) return std::move(trailer).status();
    auto index = image::decode_index(header_, *trailer, index_part);
    if (!index.ok()) return std::move(index).status();
    return finish(*trailer, *index);
  }

 private:
  Status read_front() {
    auto header = image::decode_header(bytes(0, page_size()));
    if (!header.ok()) return std::move(header).status();
    header_ = *header;
    auto metadata = image::decode_metadata(header_, bytes(page_size(), header_.metadata_bytes()));
    if (!metadata.ok()) return std::move(metadata).status();
    contents_.file_size = header_.file_size;
    contents_.metadata = std::move(*metadata);
    return {};
  }

  Status read_extent(uint64_t offset) {
    auto head = image::decode_extent_head(header_, bytes(offset, page_size()), offset);
    if (!head.ok()) return std::move(head).status();
    const Bytes data = bytes(offset + page_size(), head->stored_bytes());
    if (plant_ != Plant::kData) PGALLOC_RETURN_IF_ERROR(image::check_extent_data(*head, data));
    if (plant_ != Plant::kUsage) {
      PGALLOC_RETURN_IF_ERROR(image::check_extent_usage(*head, contents_.metadata.usage));
    }
    Extent extent{head->range, static_cast<uint32_t>(head->encoding), {}, {}};
    extent.data = std::string_view(data.data(), std::min<size_t>(data.size(), head->stored_length));
    head->map.visit_runs([&](size_t first, size_t pages) {
      for (size_t i = first; i < first + pages; ++i) extent.stored_pages.push_back(i);
    });
    heads_.push_back(*head);
    contents_.extents.push_back(std::move(extent));
    return {};
  }

  Result<Contents> finish(const image::Trailer& trailer,
                          const std::vector<image::IndexEntry>& index) {
    for (size_t i = 0; i < index.size(); ++i) {
      if (plant_ != Plant::kIndex) PGALLOC_RETURN_IF_ERROR(image::check_same(index[i], heads_[i]));
    }
    contents_.zero_pages_skipped = trailer.zero_pages_skipped;
    return std::move(contents_);
  }

  // Less where the image ends.
  Bytes bytes(uint64_t offset, uint64_t size) const {
    const std::string_view part = image_.substr(std::min<uint64_t>(offset, image_.size()), size);
    return {part.data(), part.size()};
  }

  const std::string_view image_;
  const Plant plant_;
  image::Header header_;
  Contents contents_;
  std::vector<image::ExtentHead> heads_;
};

}  // namespace

Result<Contents> read_seeking(std::string_view image, Plant plant) {
  return Reader(image, plant).read_seeking();
}
Result<Contents> read_forward(std::string_view image, Plant plant) {
  return Reader(image, plant).read_forward();
}

}  // namespace pgalloc::image_driver
