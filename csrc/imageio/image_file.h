// Purpose: an image in a file that can be read at any place: opened, checked, and read extent by
// extent.
//
// Thread safety: immutable after open(); read_extent() may run in several threads.
//
// Nothing the file says is believed before it was compared with the file's real size and checked.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backing/buffer.h"
#include "base/status.h"
#include "file/extent_source.h"
#include "image/format.h"
#include "os/descriptor.h"

namespace pgalloc {

class ImageFile final : public ExtentSource {
 public:
  // Reads and checks everything but the extents.
  static Result<std::shared_ptr<const ImageFile>> open_path(const std::string& path);
  // The image that begins at `offset`; other bytes may follow it. On a descriptor of its own; `fd`
  // stays the caller's.
  static Result<std::shared_ptr<const ImageFile>> open_duplicate(int fd, uint64_t offset);
  ~ImageFile() override = default;
  ImageFile(const ImageFile&) = delete;
  ImageFile& operator=(const ImageFile&) = delete;

  uint64_t size() const { return size_; }
  const image::Header& header() const { return header_; }
  const image::Metadata& metadata() const { return metadata_; }
  const std::vector<image::IndexEntry>& index() const override { return index_; }
  const image::Trailer& trailer() const { return trailer_; }
  bool has_encoded_extents() const override { return encoded_; }

  size_t first_extent_after(uint64_t offset) const override;
  Result<image::ExtentHead> read_extent(size_t i, Buffer& buffer) const override;

 private:
  ImageFile(os::Descriptor file, uint64_t begin) : file_(std::move(file)), begin_(begin) {}
  static Result<std::shared_ptr<ImageFile>> opened(os::Descriptor file, uint64_t begin);
  Status read_front();
  Status read_back();
  Status read_back_before_others();
  // The size of the image as the heads of its extents tell it, from one to the next.
  Result<uint64_t> size_by_heads() const;
  Status read_at(uint64_t offset, char* data, size_t size) const;
  // Reads a part as a whole, once its checksum is right: a hole costs the author of a file
  // nothing, and should cost us nothing either.
  Status read_part(FileRange part, uint32_t crc, const char* wrong, Buffer& buffer) const;

  const os::Descriptor file_;
  const uint64_t begin_;  // in the file; all other offsets are in the image
  uint64_t size_ = 0;
  image::Header header_;
  image::Metadata metadata_;
  image::Trailer trailer_;
  std::vector<image::IndexEntry> index_;
  bool encoded_ = false;
};

}  // namespace pgalloc
