#include "image/encode.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/crc32c.h"
#include "image/layout.h"

namespace pgalloc::image {
namespace {

// The next bytes of a part.
class Writer {
 public:
  explicit Writer(char* to) : to_(to) {}

  template <class Value>
  void put(const Value& value) {
    put(&value, sizeof value);
  }
  void put(const std::string& bytes) { put(bytes.data(), bytes.size()); }

 private:
  void put(const void* from, size_t size) {
    std::memcpy(to_, from, size);
    to_ += size;
  }
  char* to_;
};

// Puts a structure at the beginning of a page of zeros, with the checksum of that page.
template <class Layout>
uint32_t seal(Layout fields, char* page) {
  fields.crc = 0;
  std::memcpy(page, &fields, sizeof fields);
  fields.crc = crc32c(page, page_size());
  std::memcpy(page, &fields, sizeof fields);
  return fields.crc;
}

void put_metadata(const Metadata& metadata, char* to) {
  Writer writer(to);
  for (const Usage& usage : metadata.usage) {
    writer.put(layout::Usage{usage.range.start,
                             usage.range.end,
                             usage.refs,
                             usage.memcg_id,
                             static_cast<uint8_t>(usage.kind),
                             usage.committed,
                             usage.huge,
                             {}});
  }
  writer.put(metadata.restore_id);
  for (const Hook& hook : metadata.hooks) {
    PGALLOC_CHECK(!hook.name.empty() && hook.name.size() <= kHookNameLengthMax);
    writer.put(static_cast<uint32_t>(hook.name.size()));
    writer.put(uint64_t{hook.payload.size()});
    writer.put(hook.name);
    writer.put(hook.payload);
  }
}

}  // namespace

uint64_t metadata_length(const Metadata& metadata) {
  uint64_t length = metadata.usage.size() * sizeof(layout::Usage) + metadata.restore_id.size();
  for (const Hook& hook : metadata.hooks) {
    length += layout::kHookPrefixSize + hook.name.size() + hook.payload.size();
  }
  return length;
}

std::string encode_front(uint64_t file_size, const Metadata& metadata, Header* header) {
  PGALLOC_CHECK(is_aligned(file_size, page_size()));
  PGALLOC_CHECK_OP(metadata.restore_id.size(), <=, kRestoreIdLengthMax);
  PGALLOC_CHECK_OP(metadata.hooks.size(), <=, kHookCountMax);
  const bool any_huge = std::any_of(metadata.usage.begin(), metadata.usage.end(),
                                    [](const Usage& usage) { return usage.huge; });
  header->version = any_huge ? kVersionOfHugePages : kVersionMin;
  header->file_size = file_size;
  header->usage_count = metadata.usage.size();
  header->restore_id_length = static_cast<uint32_t>(metadata.restore_id.size());
  header->hook_count = static_cast<uint32_t>(metadata.hooks.size());
  header->metadata_length = metadata_length(metadata);
  PGALLOC_CHECK_OP(header->metadata_length, <=, kMetadataLengthMax);

  std::string bytes(header->first_extent(), '\0');
  char* const parts = bytes.data() + page_size();
  put_metadata(metadata, parts);
  header->metadata_crc = crc32c(parts, header->metadata_bytes());
  header->crc =
      seal(layout::Header{layout::kHeaderMagic, header->version, static_cast<uint32_t>(page_size()),
                          0, header->restore_id_length, file_size, header->usage_count,
                          header->hook_count, header->metadata_crc, header->metadata_length},
           bytes.data());
  return bytes;
}

void encode_extent_head(ExtentHead* head, char* page) {
  const uint64_t pages = head->range.length() / page_size();
  PGALLOC_CHECK(!head->range.empty() && head->range.length() <= kExtentSpan);
  PGALLOC_CHECK_OP(head->map.next_set(pages), ==, PageMap::kPages);
  PGALLOC_CHECK_OP(head->map.count(), >, 0u);
  std::memset(page, 0, page_size());
  head->crc = seal(layout::ExtentHead{layout::kExtentMagic,
                                      0,
                                      head->range.start,
                                      static_cast<uint32_t>(pages),
                                      static_cast<uint32_t>(head->map.count()),
                                      static_cast<uint32_t>(head->encoding),
                                      head->data_crc,
                                      head->stored_length,
                                      head->offset,
                                      {},
                                      head->map},
                   page);
}

std::string encode_back(const Header& header, std::span<const IndexEntry> entries, uint64_t offset,
                        uint64_t zero_pages_skipped) {
  const uint64_t size = index_bytes(entries.size());
  std::string bytes(size + page_size(), '\0');
  Writer writer(bytes.data());
  writer.put(layout::IndexFront{layout::kIndexMagic, {}, entries.size()});
  uint64_t stored_pages = 0;
  for (const IndexEntry& entry : entries) {
    writer.put(layout::IndexEntry{entry.range.start, entry.offset, entry.stored_length,
                                  static_cast<uint32_t>(entry.range.length() / page_size()),
                                  entry.stored_pages, static_cast<uint32_t>(entry.encoding),
                                  entry.head_crc});
    stored_pages += entry.stored_pages;
  }
  seal(layout::Trailer{layout::kTrailerMagic,
                       offset,
                       entries.size(),
                       offset + bytes.size(),
                       stored_pages,
                       zero_pages_skipped,
                       crc32c(bytes.data(), size),
                       header.crc,
                       0,
                       {}},
       bytes.data() + size);
  return bytes;
}

}  // namespace pgalloc::image
