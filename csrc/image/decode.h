// Purpose: turning bytes that may come from anywhere into the parts of an image, or saying what is
// wrong with them.
//
// Thread safety: any thread; no function keeps anything.
//
// Every function checks everything the format says about its part, as far as the part alone and
// the arguments tell: magic, checksum, limits, order, alignment, zeros between the fields. It takes
// no memory beyond a small multiple of the bytes it is given. Errors are kSnapshotCorrupt, or
// kSnapshotVersion from decode_header(); each has a message of its own.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "image/format.h"

namespace pgalloc::image {

using Bytes = std::span<const char>;

// `bytes`: the first page, or less where the image is shorter.
Result<Header> decode_header(Bytes bytes);
// `bytes`: header.metadata_bytes() of them.
Result<Metadata> decode_metadata(const Header& header, Bytes bytes);
// `page`: one page, at `offset` of the image.
Result<ExtentHead> decode_extent_head(const Header& header, Bytes page, uint64_t offset);
// Whether `data`, head.stored_bytes() of them, are what the head says.
Status check_extent_data(const ExtentHead& head, Bytes data);
// Whether every stored page belongs to a range of `usage`.
Status check_extent_usage(const ExtentHead& head, const std::vector<Usage>& usage);
// `page`: the last page. Checks it against the header and the image's size as far as that is known
// (0: not known).
Result<Trailer> decode_trailer(const Header& header, Bytes page, uint64_t image_size);
// `bytes`: index_bytes(trailer.extent_count) of them. The entries tile the image from
// header.first_extent() to trailer.index_offset exactly, and add up to the trailer's totals.
Result<std::vector<IndexEntry>> decode_index(const Header& header, const Trailer& trailer,
                                             Bytes bytes);
// For a reader that goes forward: whether a page at the place of an extent begins the index, and if
// so, how many extents it counts.
bool begins_index(Bytes page);
uint64_t peek_extent_count(Bytes index_page);

// Whether the head is the one that `entry` speaks of.
Status check_same(const IndexEntry& entry, const ExtentHead& head);

}  // namespace pgalloc::image
