// Purpose: reads an image that comes in order, from a source that can only go forward. It does no
// input itself: it says how many bytes come next, and is fed them.
//
// Thread safety: externally synchronised.
//
// What the index and the trailer say is compared with what has come, in the end. Memory is taken for
// bytes that have come, never for those that a length announces.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "image/format.h"

namespace pgalloc {

class ImageStream {
 public:
  // How many bytes feed() has to be given next; 0 when the image is complete.
  size_t wanted() const;
  // REQUIRES: bytes.size() == wanted(). After an error the stream is of no use any more.
  Status feed(std::span<const char> bytes);

  bool has_metadata() const { return stage_ > Stage::kMetadata; }
  // REQUIRES (both): has_metadata().
  const image::Header& header() const { return header_; }
  const image::Metadata& metadata() const { return metadata_; }
  // The extent whose data came with the last feed(), or nothing; data() is valid until the next one.
  const image::ExtentHead* extent() const { return extent_came_ ? &head_ : nullptr; }
  std::span<const char> data() const { return data_; }

  uint64_t offset() const { return offset_; }  // bytes fed so far
  // REQUIRES (both): wanted() == 0.
  const std::vector<image::IndexEntry>& index() const { return index_; }
  const image::Trailer& trailer() const { return trailer_; }

 private:
  enum class Stage { kHeader, kMetadata, kHead, kData, kIndex, kTrailer, kEnd };

  Status take(std::span<const char> bytes);
  Status take_head(std::span<const char> page);
  Status take_trailer(std::span<const char> page);

  Stage stage_ = Stage::kHeader;
  uint64_t offset_ = 0;
  uint64_t left_ = 0;    // bytes of the metadata or the index still to come
  std::string pending_;  // those that have come
  bool extent_came_ = false;
  image::Header header_;
  image::Metadata metadata_;
  image::ExtentHead head_;
  std::span<const char> data_;
  std::vector<image::IndexEntry> index_;  // from the heads that came
  image::Trailer trailer_;
};

}  // namespace pgalloc
