// Purpose: the parts of an image, as values. docs/image-format.md says what they mean byte by byte.
//
// Thread safety: values only.
//
// This room turns values into bytes (encode.h) and bytes from anywhere into checked values
// (decode.h). It reads and writes nothing, and knows nothing of the file that is saved.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/memory_kind.h"
#include "base/units.h"
#include "image/page_map.h"

namespace pgalloc::image {

// An image is of the first version that can say all it says.
inline constexpr uint32_t kVersionMin = 1;
inline constexpr uint32_t kVersionOfHugePages = 2;  // the usage set says which are for huge pages
inline constexpr uint32_t kVersionMax = kVersionOfHugePages;

// The longest stretch of the file one extent stands for, and the grid it does not cross.
inline constexpr uint64_t kExtentSpan = uint64_t{4} << 20;

inline constexpr uint32_t kRestoreIdLengthMax = 65536;
inline constexpr uint32_t kHookCountMax = 65536;
inline constexpr uint32_t kHookNameLengthMax = 255;
inline constexpr uint64_t kMetadataLengthMax = uint64_t{1} << 30;

enum class Encoding : uint32_t { kRaw = 0, kZstd = 1 };

struct Header {
  uint32_t version = kVersionMin;
  uint64_t file_size = 0;
  uint64_t usage_count = 0;
  uint32_t restore_id_length = 0;
  uint32_t hook_count = 0;
  uint64_t metadata_length = 0;
  uint32_t metadata_crc = 0;
  uint32_t crc = 0;  // of the header page

  // With the padding.
  uint64_t metadata_bytes() const { return align_up(metadata_length, page_size()); }
  uint64_t first_extent() const { return page_size() + metadata_bytes(); }
};

// A stretch of pages that are used alike.
struct Usage {
  FileRange range;
  uint32_t refs = 1;
  uint32_t memcg_id = 0;
  MemoryKind kind = MemoryKind::kAnonymous;
  bool committed = false;
  bool huge = false;  // they lie in areas for huge pages

  friend bool operator==(const Usage&, const Usage&) = default;
};

struct Hook {
  std::string name;
  std::string payload;

  friend bool operator==(const Hook&, const Hook&) = default;
};

struct Metadata {
  std::vector<Usage> usage;
  std::string restore_id;
  std::vector<Hook> hooks;

  friend bool operator==(const Metadata&, const Metadata&) = default;
};

struct ExtentHead {
  FileRange range;      // of the file
  uint64_t offset = 0;  // of the head in the image
  Encoding encoding = Encoding::kRaw;
  uint64_t stored_length = 0;
  uint32_t data_crc = 0;  // of the stored bytes with their padding
  PageMap map;            // bit i: page i of `range` is stored
  uint32_t crc = 0;       // of the head's page

  uint64_t raw_length() const { return map.count() * page_size(); }
  // With the padding.
  uint64_t stored_bytes() const { return align_up(stored_length, page_size()); }
  uint64_t end() const { return offset + page_size() + stored_bytes(); }
};

struct IndexEntry {
  FileRange range;
  uint64_t offset = 0;
  Encoding encoding = Encoding::kRaw;
  uint64_t stored_length = 0;
  uint32_t stored_pages = 0;
  uint32_t head_crc = 0;

  uint64_t stored_bytes() const { return align_up(stored_length, page_size()); }
  uint64_t end() const { return offset + page_size() + stored_bytes(); }

  friend bool operator==(const IndexEntry&, const IndexEntry&) = default;
};

// The entry that belongs to `head`.
IndexEntry index_entry(const ExtentHead& head);

struct Trailer {
  uint64_t index_offset = 0;
  uint64_t extent_count = 0;
  uint64_t image_size = 0;
  uint64_t stored_pages = 0;
  uint64_t zero_pages_skipped = 0;
  uint32_t index_crc = 0;
  uint32_t header_crc = 0;
};

// With the padding.
uint64_t index_bytes(uint64_t extent_count);

}  // namespace pgalloc::image
