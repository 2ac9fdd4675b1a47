// Purpose: what the decoders of different parts check alike.
//
// Thread safety: any thread.
#pragma once

#include <cstring>
#include <string>

#include "base/check.h"
#include "base/status.h"
#include "image/decode.h"

namespace pgalloc::image {

inline Status corrupt(std::string message) {
  return Status::error(ErrorCode::kSnapshotCorrupt, std::move(message));
}

bool all_zero(Bytes bytes);

// The checksum of `page`, which holds its own in the four bytes at `field`.
uint32_t checksum_without(Bytes page, size_t field);

// The structure at the beginning of `bytes`. REQUIRES: they are enough.
template <class Layout>
Layout load(Bytes bytes) {
  PGALLOC_CHECK_OP(bytes.size(), >=, sizeof(Layout));
  Layout fields;
  std::memcpy(&fields, bytes.data(), sizeof fields);
  return fields;
}

// What is wrong with what an extent's head (layout::ExtentHead) or its entry in the index
// (layout::IndexEntry) says of the stretch and of how it is stored; null if nothing is.
template <class Layout>
const char* extent_mistake(const Header& header, const Layout& fields);

}  // namespace pgalloc::image
