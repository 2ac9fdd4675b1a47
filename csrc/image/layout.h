// Purpose: the tables of docs/image-format.md as structures, byte for byte. Little-endian machines
// copy them as they are; members named `zero` are the bytes that no table names.
//
// Thread safety: values only.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "image/page_map.h"

namespace pgalloc::image::layout {

static_assert(std::endian::native == std::endian::little);

struct Magic8 {
  char bytes[8];
  friend bool operator==(const Magic8&, const Magic8&) = default;
};
inline constexpr Magic8 kHeaderMagic{{'\x89', 'P', 'G', 'A', 'L', 'O', 'C', '\n'}};
inline constexpr Magic8 kTrailerMagic{{'\x89', 'P', 'G', 'A', 'E', 'N', 'D', '\n'}};

struct Magic4 {
  char bytes[4];
  friend bool operator==(const Magic4&, const Magic4&) = default;
};
inline constexpr Magic4 kExtentMagic{{'X', 'T', 'N', 'T'}};
inline constexpr Magic4 kIndexMagic{{'I', 'N', 'D', 'X'}};

struct Header {
  Magic8 magic;
  uint32_t version;
  uint32_t page_size;
  uint32_t crc;
  uint32_t restore_id_length;
  uint64_t file_size;
  uint64_t usage_count;
  uint32_t hook_count;
  uint32_t metadata_crc;
  uint64_t metadata_length;
};
static_assert(sizeof(Header) == 56 && offsetof(Header, metadata_length) == 48);

struct Usage {
  uint64_t start;
  uint64_t end;
  uint32_t refs;
  uint32_t memcg_id;
  uint8_t kind;
  uint8_t committed;
  uint8_t huge;  // from version 2 on
  char zero[5];
};
static_assert(sizeof(Usage) == 32 && offsetof(Usage, kind) == 24);

// A hook: these two numbers, unaligned, then name and payload.
inline constexpr size_t kHookPrefixSize = sizeof(uint32_t) + sizeof(uint64_t);

struct ExtentHead {
  Magic4 magic;
  uint32_t crc;
  uint64_t start;
  uint32_t page_count;
  uint32_t stored_pages;
  uint32_t encoding;
  uint32_t data_crc;
  uint64_t stored_length;
  uint64_t offset;
  char zero[16];
  PageMap map;
};
static_assert(sizeof(ExtentHead) == 192 && offsetof(ExtentHead, map) == 64);

struct IndexFront {
  Magic4 magic;
  char zero[4];
  uint64_t extent_count;
};
static_assert(sizeof(IndexFront) == 16);

struct IndexEntry {
  uint64_t start;
  uint64_t offset;
  uint64_t stored_length;
  uint32_t page_count;
  uint32_t stored_pages;
  uint32_t encoding;
  uint32_t head_crc;
};
static_assert(sizeof(IndexEntry) == 40);

struct Trailer {
  Magic8 magic;
  uint64_t index_offset;
  uint64_t extent_count;
  uint64_t image_size;
  uint64_t stored_pages;
  uint64_t zero_pages_skipped;
  uint32_t index_crc;
  uint32_t header_crc;
  uint32_t crc;
  char zero[4];
};
static_assert(sizeof(Trailer) == 64 && offsetof(Trailer, crc) == 56);

}  // namespace pgalloc::image::layout
