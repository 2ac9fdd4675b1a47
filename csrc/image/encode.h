// Purpose: the bytes of an image's parts, checksums included.
//
// Thread safety: any thread; no function keeps anything.
//
// Each function is given room for whole pages and fills all of it, padding included. What goes in
// has been made by this process: impossible values are internal errors here.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "image/format.h"

namespace pgalloc::image {

// The length of the metadata without padding.
uint64_t metadata_length(const Metadata& metadata);

// Header page and metadata, one after the other: what an image begins with. Sets *header to what
// was written.
std::string encode_front(uint64_t file_size, const Metadata& metadata, Header* header);

// Fills the page at `page` and sets head->crc. REQUIRES: everything else in *head is set.
void encode_extent_head(ExtentHead* head, char* page);

// Index and trailer: what an image ends with. `offset` is where the index begins.
std::string encode_back(const Header& header, std::span<const IndexEntry> entries, uint64_t offset,
                        uint64_t zero_pages_skipped);

}  // namespace pgalloc::image
