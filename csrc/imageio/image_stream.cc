#include "imageio/image_stream.h"

#include <algorithm>

#include "image/checks.h"
#include "image/decode.h"

namespace pgalloc {

using image::corrupt;

namespace {

constexpr size_t kPiece = size_t{1} << 20;

}  // namespace

size_t ImageStream::wanted() const {
  switch (stage_) {
    case Stage::kHeader:
    case Stage::kHead:
    case Stage::kTrailer:
      return page_size();
    case Stage::kMetadata:
    case Stage::kIndex:
      return std::min<uint64_t>(left_, kPiece);
    case Stage::kData:
      return head_.stored_bytes();
    case Stage::kEnd:
      break;
  }
  return 0;
}

Status ImageStream::feed(std::span<const char> bytes) {
  PGALLOC_CHECK_OP(bytes.size(), ==, wanted());
  extent_came_ = false;
  const size_t size = bytes.size();
  Status status = take(bytes);
  offset_ += size;
  return status;
}

Status ImageStream::take(std::span<const char> bytes) {
  switch (stage_) {
    case Stage::kHeader: {
      Result<image::Header> header = image::decode_header(bytes);
      if (!header.ok()) return std::move(header).status();
      header_ = *header;
      left_ = header_.metadata_bytes();
      stage_ = Stage::kMetadata;
      if (left_ > 0) return {};
      bytes = {};
      [[fallthrough]];
    }
    case Stage::kMetadata: {
      pending_.append(bytes.data(), bytes.size());
      left_ -= bytes.size();
      if (left_ > 0) return {};
      Result<image::Metadata> metadata = image::decode_metadata(header_, pending_);
      if (!metadata.ok()) return std::move(metadata).status();
      metadata_ = std::move(*metadata);
      std::string().swap(pending_);
      stage_ = Stage::kHead;
      return {};
    }
    case Stage::kHead:
      return take_head(bytes);
    case Stage::kData:
      PGALLOC_RETURN_IF_ERROR(image::check_extent_data(head_, bytes));
      data_ = bytes;
      extent_came_ = true;
      stage_ = Stage::kHead;
      return {};
    case Stage::kIndex:
      pending_.append(bytes.data(), bytes.size());
      left_ -= bytes.size();
      if (left_ == 0) stage_ = Stage::kTrailer;
      return {};
    case Stage::kTrailer:
      return take_trailer(bytes);
    case Stage::kEnd:
      break;
  }
  return {};
}

// A page at the place of an extent's head: a head, or the first page of the index.
Status ImageStream::take_head(std::span<const char> page) {
  if (image::begins_index(page)) {
    if (image::peek_extent_count(page) != index_.size()) {
      return corrupt("the index has another number of extents than came");
    }
    pending_.assign(page.data(), page.size());
    left_ = image::index_bytes(index_.size()) - page.size();
    stage_ = left_ > 0 ? Stage::kIndex : Stage::kTrailer;
    return {};
  }
  Result<image::ExtentHead> head = image::decode_extent_head(header_, page, offset_);
  if (!head.ok()) return std::move(head).status();
  head_ = *head;
  if (!index_.empty() && head_.range.start < index_.back().range.end) {
    return corrupt("an extent does not follow the one before it");
  }
  PGALLOC_RETURN_IF_ERROR(image::check_extent_usage(head_, metadata_.usage));
  index_.push_back(image::index_entry(head_));
  stage_ = Stage::kData;
  return {};
}

Status ImageStream::take_trailer(std::span<const char> page) {
  Result<image::Trailer> trailer = image::decode_trailer(header_, page, offset_ + page.size());
  if (!trailer.ok()) return std::move(trailer).status();
  Result<std::vector<image::IndexEntry>> index = image::decode_index(header_, *trailer, pending_);
  if (!index.ok()) return std::move(index).status();
  if (*index != index_) return corrupt("the index differs from the extents that came");
  trailer_ = *trailer;
  std::string().swap(pending_);
  stage_ = Stage::kEnd;
  return {};
}

}  // namespace pgalloc
