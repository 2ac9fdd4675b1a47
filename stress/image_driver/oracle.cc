#include "image_driver/oracle.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <string>

#include "base/crc32c.h"

namespace pgalloc::image_driver {
namespace {

using Wide = unsigned __int128;

struct Invalid {};

void require(bool condition) {
  if (!condition) throw Invalid{};
}

bool decodes_as_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const auto byte = static_cast<unsigned char>(text[i++]);
    if (byte < 0x80) continue;
    const int more = byte >> 5 == 0b110     ? 1
                     : byte >> 4 == 0b1110  ? 2
                     : byte >> 3 == 0b11110 ? 3
                                            : 0;
    if (more == 0) return false;
    uint32_t character = byte & (0x3F >> more);
    for (int k = 0; k < more; ++k) {
      if (i == text.size() || (text[i] & 0xC0) != 0x80) return false;
      character = character << 6 | (text[i++] & 0x3F);
    }
    const uint32_t shortest[] = {0, 0x80, 0x800, 0x10000};
    if (character < shortest[more] || character > 0x10FFFF) return false;
    if (character >= 0xD800 && character <= 0xDFFF) return false;
  }
  return true;
}

class Oracle {
 public:
  explicit Oracle(std::string_view image) : image_(image), named_(image.size(), false) {}

  Contents read() {
    read_header();
    read_usage();
    metadata().restore_id = bytes(take(restore_id_length_), restore_id_length_);
    require(decodes_as_utf8(metadata().restore_id));
    read_hooks();
    require(at_ == page_ + metadata_length_);
    require(crc(page_, padded(metadata_length_)) == metadata_crc_);
    at_ = page_ + padded(metadata_length_);

    const Wide trailer = image_.size() - page_;
    require(bytes(trailer, 8) == std::string_view("\x89PGAEND\n", 8));
    const Wide index = number(trailer + 8, 8);
    const Wide extents = number(trailer + 16, 8);
    require(index + padded(16 + 40 * extents) == trailer);
    require(bytes(index, 4) == "INDX");
    require(number(index + 8, 8) == extents);
    for (Wide i = 0; i < extents; ++i) read_extent(index + 16 + 40 * i);
    require(at_ == index);

    require(number(trailer + 24, 8) == image_.size());
    require(number(trailer + 32, 8) == stored_pages_);
    contents_.zero_pages_skipped = number(trailer + 40, 8);
    require((Wide{contents_.zero_pages_skipped} + stored_pages_) * page_ <= contents_.file_size);
    require(number(trailer + 48, 4) == crc(index, trailer - index));
    require(number(trailer + 52, 4) == number(16, 4));
    require(number(trailer + 56, 4) == crc_without(trailer, 56));
    require_zeros();
    return std::move(contents_);
  }

 private:
  void read_header() {
    require(bytes(0, 8) == std::string_view("\x89PGALOC\n", 8));
    require(number(8, 4) == 1);
    page_ = number(12, 4);
    require(page_ == page_size());
    require(number(16, 4) == crc_without(0, 16));
    restore_id_length_ = number(20, 4);
    require(restore_id_length_ <= 65536);
    contents_.file_size = number(24, 8);
    require(contents_.file_size % page_ == 0 && contents_.file_size >> 63 == 0);
    usage_count_ = number(32, 8);
    hook_count_ = number(40, 4);
    require(hook_count_ <= 65536);
    metadata_crc_ = number(44, 4);
    metadata_length_ = number(48, 8);
    require(metadata_length_ <= Wide{1} << 30);
    at_ = page_;
    require(usage_count_ * 32 <= image_.size());
  }

  void read_usage() {
    uint64_t reached = 0;
    for (Wide i = 0; i < usage_count_; ++i) {
      const Wide at = take(32);
      const FileRange range{number(at, 8), number(at + 8, 8)};
      require(range.start % page_ == 0 && range.end % page_ == 0);
      require(reached <= range.start && range.start < range.end);
      require(range.end <= contents_.file_size);
      reached = range.end;
      const uint64_t refs = number(at + 16, 4);
      const uint64_t kind = number(at + 24, 1);
      const uint64_t committed = number(at + 25, 1);
      require(refs >= 1 && kind <= 4 && committed <= 1);
      metadata().usage.push_back({range, static_cast<uint32_t>(refs),
                                  static_cast<uint32_t>(number(at + 20, 4)),
                                  static_cast<MemoryKind>(kind), committed == 1});
    }
  }

  void read_hooks() {
    std::set<std::string> names;
    for (Wide i = 0; i < hook_count_; ++i) {
      const uint64_t name_length = number(take(4), 4);
      const uint64_t payload_length = number(take(8), 8);
      require(1 <= name_length && name_length <= 255);
      const std::string name(bytes(take(name_length), name_length));
      const std::string payload(bytes(take(payload_length), payload_length));
      require(decodes_as_utf8(name) && names.insert(name).second);
      metadata().hooks.push_back({name, payload});
    }
  }

  // The extent at at_, and its entry in the index.
  void read_extent(Wide entry) {
    const Wide head = take(page_);
    require(bytes(head, 4) == "XTNT");
    require(number(head + 4, 4) == crc_without(head, 4));
    Extent extent;
    const Wide start = number(head + 8, 8);
    const Wide pages = number(head + 16, 4);
    const Wide end = start + pages * page_;
    const Wide span = 4 << 20;
    require(start % page_ == 0 && pages >= 1 && end <= contents_.file_size);
    require(start / span == (end - 1) / span);
    require(contents_.extents.empty() || contents_.extents.back().range.end <= start);
    extent.range = {static_cast<uint64_t>(start), static_cast<uint64_t>(end)};

    for (Wide i = 0; i < 1024; ++i) {
      if ((number(head + 64 + i / 8, 1) >> (i % 8) & 1) == 0) continue;
      require(i < pages && is_used(static_cast<uint64_t>(start + i * page_)));
      extent.stored_pages.push_back(static_cast<uint64_t>(i));
    }
    const Wide stored = extent.stored_pages.size();
    require(stored >= 1 && number(head + 20, 4) == stored);
    stored_pages_ += stored;

    extent.encoding = static_cast<uint32_t>(number(head + 24, 4));
    const Wide length = number(head + 32, 8);
    require(extent.encoding <= 1);
    require(extent.encoding == 0 ? length == stored * page_
                                 : length >= 1 && length < stored * page_);
    require(number(head + 40, 8) == head);
    const Wide data = take(padded(length));
    extent.data = bytes(data, length);
    require(number(head + 28, 4) == crc(data, padded(length)));
    contents_.extents.push_back(extent);

    require(number(entry, 8) == start && number(entry + 8, 8) == head);
    require(number(entry + 16, 8) == length && number(entry + 24, 4) == pages);
    require(number(entry + 28, 4) == stored && number(entry + 32, 4) == extent.encoding);
    require(number(entry + 36, 4) == number(head + 4, 4));
  }

  bool is_used(uint64_t offset) {
    return std::any_of(metadata().usage.begin(), metadata().usage.end(),
                       [&](const image::Usage& u) { return u.range.contains(offset); });
  }

  // Every byte that is read through here is one that a table names.
  std::string_view bytes(Wide at, Wide size) {
    require(at + size <= image_.size());
    const auto begin = named_.begin() + static_cast<ptrdiff_t>(at);
    std::fill(begin, begin + static_cast<ptrdiff_t>(size), true);
    return image_.substr(static_cast<size_t>(at), static_cast<size_t>(size));
  }
  uint64_t number(Wide at, size_t size) {
    uint64_t value = 0;
    std::memcpy(&value, bytes(at, size).data(), size);
    return value;
  }
  void require_zeros() {
    for (size_t i = 0; i < image_.size(); ++i) require(named_[i] || image_[i] == 0);
  }

  // The beginning of the next `size` bytes of those that follow each other.
  Wide take(Wide size) {
    const Wide at = at_;
    require(at + size <= image_.size());
    at_ += size;
    return at;
  }
  Wide padded(Wide length) const { return (length + page_ - 1) / page_ * page_; }

  uint32_t crc(Wide at, Wide size) {
    require(at + size <= image_.size());
    return testing::crc32c_portable(image_.data() + at, static_cast<size_t>(size));
  }
  uint32_t crc_without(Wide page, size_t field) {
    require(page + page_ <= image_.size());
    std::string copy(image_.substr(static_cast<size_t>(page), static_cast<size_t>(page_)));
    std::memset(copy.data() + field, 0, 4);
    return testing::crc32c_portable(copy.data(), copy.size());
  }

  image::Metadata& metadata() { return contents_.metadata; }

  const std::string_view image_;
  std::vector<char> named_;
  Contents contents_;
  Wide page_ = 0;
  Wide at_ = 0;
  Wide restore_id_length_ = 0;
  Wide usage_count_ = 0;
  Wide hook_count_ = 0;
  Wide metadata_length_ = 0;
  uint64_t metadata_crc_ = 0;
  Wide stored_pages_ = 0;
};

}  // namespace

std::optional<Contents> consult(std::string_view image) {
  try {
    return Oracle(image).read();
  } catch (const Invalid&) {
    return std::nullopt;
  }
}

}  // namespace pgalloc::image_driver
