#include "imageio/image_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>

#include "base/crc32c.h"
#include "image/checks.h"
#include "image/decode.h"
#include "imageio/lost_image.h"
#include "os/retry.h"
#include "os/syscalls.h"
#include "os/transfer.h"

namespace pgalloc {

using image::corrupt;
using os::retry_interrupted;
using os::sys;

namespace {

// Opening a pipe must not wait for a writer; regular files are not affected.
constexpr int kOpenFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;

}  // namespace

Result<std::shared_ptr<const ImageFile>> ImageFile::open_path(const std::string& path) {
  os::Descriptor file(retry_interrupted([&] { return sys().open(path.c_str(), kOpenFlags, 0); }));
  if (!file.open()) return Status::system_error(errno, "open");
  Result<std::shared_ptr<ImageFile>> image = opened(std::move(file), 0);
  if (!image.ok()) return std::move(image).status();
  PGALLOC_RETURN_IF_ERROR((*image)->read_back());
  return std::shared_ptr<const ImageFile>(*image);
}

Result<std::shared_ptr<const ImageFile>> ImageFile::open_duplicate(int fd, uint64_t offset) {
  os::Descriptor own(sys().duplicate(fd));
  if (!own.open()) return Status::system_error(errno, "fcntl");
  Result<std::shared_ptr<ImageFile>> image = opened(std::move(own), offset);
  if (!image.ok()) return std::move(image).status();
  PGALLOC_RETURN_IF_ERROR((*image)->read_back_before_others());
  return std::shared_ptr<const ImageFile>(*image);
}

Result<std::shared_ptr<ImageFile>> ImageFile::opened(os::Descriptor file, uint64_t begin) {
  std::shared_ptr<ImageFile> image(new ImageFile(std::move(file), begin));
  struct stat status{};
  if (sys().fstat(image->file_.fd(), &status) != 0) return Status::system_error(errno, "fstat");
  if (!S_ISREG(status.st_mode)) return Status::error(ErrorCode::kOption, "not a regular file");
  const auto end = static_cast<uint64_t>(status.st_size);
  image->size_ = end - std::min(end, begin);
  PGALLOC_RETURN_IF_ERROR(image->read_front());
  return image;
}

Status ImageFile::read_at(uint64_t offset, char* data, size_t size) const {
  if (!file_.intact()) return lost_image(file_.fd());
  Result<size_t> count = os::read_at(file_.fd(), begin_ + offset, data, size);
  if (!count.ok()) return std::move(count).status();
  return *count == size ? Status() : corrupt("the image became shorter while it was read");
}

Status ImageFile::read_part(FileRange part, uint32_t crc, const char* wrong, Buffer& buffer) const {
  constexpr uint64_t kPiece = uint64_t{1} << 20;
  char* piece = buffer.reserve(std::min(kPiece, part.length()));
  uint32_t found = 0;
  for (uint64_t offset = part.start; offset < part.end;) {
    const size_t size = std::min(kPiece, part.end - offset);
    PGALLOC_RETURN_IF_ERROR(read_at(offset, piece, size));
    found = crc32c(piece, size, found);
    offset += size;
  }
  if (found != crc) return corrupt(wrong);
  return part.length() <= kPiece
             ? Status()
             : read_at(part.start, buffer.reserve(part.length()), part.length());
}

Status ImageFile::read_front() {
  Buffer buffer;
  char* page = buffer.reserve(page_size());
  const size_t first = std::min<uint64_t>(size_, page_size());
  PGALLOC_RETURN_IF_ERROR(read_at(0, page, first));
  Result<image::Header> header = image::decode_header({page, first});
  if (!header.ok()) return std::move(header).status();
  header_ = *header;

  // The trailer has a page of its own, and so has the index.
  if (size_ < 3 * page_size() || header_.metadata_bytes() > size_ - 3 * page_size()) {
    return corrupt("the image ends before its metadata does");
  }
  PGALLOC_RETURN_IF_ERROR(read_part({page_size(), header_.first_extent()}, header_.metadata_crc,
                                    "the image's metadata: wrong checksum", buffer));
  Result<image::Metadata> metadata =
      image::decode_metadata(header_, {buffer.data(), header_.metadata_bytes()});
  if (!metadata.ok()) return std::move(metadata).status();
  metadata_ = std::move(*metadata);
  return {};
}

Status ImageFile::read_back() {
  if (!is_aligned(size_, page_size())) {
    return corrupt("the image's size is not a number of whole pages: it was cut off or added to");
  }
  Buffer buffer;
  char* page = buffer.reserve(page_size());
  PGALLOC_RETURN_IF_ERROR(read_at(size_ - page_size(), page, page_size()));
  Result<image::Trailer> trailer = image::decode_trailer(header_, {page, page_size()}, size_);
  if (!trailer.ok()) return std::move(trailer).status();
  trailer_ = *trailer;

  const FileRange part{trailer_.index_offset, size_ - page_size()};
  PGALLOC_RETURN_IF_ERROR(
      read_part(part, trailer_.index_crc, "the image's index: wrong checksum", buffer));
  Result<std::vector<image::IndexEntry>> index =
      image::decode_index(header_, trailer_, {buffer.data(), part.length()});
  if (!index.ok()) return std::move(index).status();
  index_ = std::move(*index);
  encoded_ = std::any_of(index_.begin(), index_.end(), [](const image::IndexEntry& entry) {
    return entry.encoding != image::Encoding::kRaw;
  });
  return {};
}

// Most files hold one image: its trailer is looked for at the end of the file first.
Status ImageFile::read_back_before_others() {
  Status status = read_back();
  if (status.ok() || status.code() != ErrorCode::kSnapshotCorrupt) return status;
  const Result<uint64_t> size = size_by_heads();
  if (!size.ok()) return size.status().clone();
  if (*size == size_) return status;
  size_ = *size;
  return read_back();
}

Result<uint64_t> ImageFile::size_by_heads() const {
  Buffer buffer;
  char* page = buffer.reserve(page_size());
  uint64_t offset = header_.first_extent();
  for (uint64_t extents = 0; offset + page_size() <= size_; ++extents) {
    PGALLOC_RETURN_IF_ERROR(read_at(offset, page, page_size()));
    const std::span<const char> bytes{page, page_size()};
    if (image::begins_index(bytes)) {
      const uint64_t size = offset + image::index_bytes(extents) + page_size();
      if (image::peek_extent_count(bytes) == extents && size <= size_) return size;
      break;
    }
    const Result<image::ExtentHead> head = image::decode_extent_head(header_, bytes, offset);
    if (!head.ok()) return head.status().clone();
    offset = head->end();
  }
  return corrupt("the image ends before its index does");
}

size_t ImageFile::first_extent_after(uint64_t offset) const {
  const auto first = std::partition_point(
      index_.begin(), index_.end(),
      [&](const image::IndexEntry& entry) { return entry.range.end <= offset; });
  return static_cast<size_t>(first - index_.begin());
}

Result<image::ExtentHead> ImageFile::read_extent(size_t i, Buffer& buffer) const {
  const image::IndexEntry& entry = index_[i];
  const uint64_t length = entry.end() - entry.offset;
  char* bytes = buffer.reserve(length);
  PGALLOC_RETURN_IF_ERROR(read_at(entry.offset, bytes, length));
  Result<image::ExtentHead> head =
      image::decode_extent_head(header_, {bytes, page_size()}, entry.offset);
  if (!head.ok()) return head;
  PGALLOC_RETURN_IF_ERROR(image::check_same(entry, *head));
  PGALLOC_RETURN_IF_ERROR(image::check_extent_usage(*head, metadata_.usage));
  PGALLOC_RETURN_IF_ERROR(
      image::check_extent_data(*head, {bytes + page_size(), head->stored_bytes()}));
  return head;
}

}  // namespace pgalloc
