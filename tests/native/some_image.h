// Purpose: the bytes of an image, for what reads images.
//
// Thread safety: externally synchronised.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/crc32c.h"
#include "image/encode.h"
#include "native/support.h"

namespace pgalloc::native_tests {

// One page in each extent: page 2 * i of the file, full of one letter.
struct SomeImage {
  explicit SomeImage(uint64_t extents, image::Metadata what = {}) : metadata(std::move(what)) {
    const uint64_t file_size = (2 * extents + 2) * page_size();
    metadata.usage = {{{0, file_size}}};
    bytes = image::encode_front(file_size, metadata, &header);
    front = bytes.size();
    for (uint64_t i = 0; i < extents; ++i) add_extent(2 * i);
    end();
  }
  void add_extent(uint64_t page) {
    const std::string data(page_size(), letter(index.size()));
    image::ExtentHead head{.range = pages(page, page + 1),
                           .offset = bytes.size(),
                           .stored_length = page_size(),
                           .data_crc = crc32c(data.data(), data.size())};
    head.map.set(0);
    std::string first(page_size(), '\0');
    image::encode_extent_head(&head, first.data());
    bytes += first + data;
    index.push_back(image::index_entry(head));
  }
  void end() { bytes += image::encode_back(header, index, bytes.size(), 0); }
  // As if nothing came after the last extent yet.
  void reopen() { bytes.resize(bytes.size() - image::index_bytes(index.size()) - page_size()); }
  static char letter(size_t i) { return static_cast<char>('a' + i % 26); }

  image::Metadata metadata;
  image::Header header;
  std::vector<image::IndexEntry> index;
  std::string bytes;
  size_t front = 0;
};

}  // namespace pgalloc::native_tests
