// Purpose: what is written into pages so that a page which is shared, lost or dirty gives itself
// away.
//
// A stamp says which thread made it, its number there, and, in every page, which page of the file
// that is. It stands in the first and the last word of a page and in one in between. A thread
// with a reference may check it; only the sole owner of a page may write it.
//
// Blank pages are the other half: no thread touches them, so that they stay as the allocator left
// them, and whatever books them as committed without need is found out. They are read by pread,
// which, unlike a look through the mapping, does not commit them.
//
// Thread safety: any thread; no state.
#pragma once

#include <cstdint>
#include <optional>

#include "base/units.h"
#include "file/memory_file.h"

namespace pgalloc::torture {

struct Stamp {
  uint8_t thread = 0;
  uint32_t sequence = 0;
};

// A reference on every page of `range`, all of which bear `stamp`, or are blank.
struct Holding {
  FileRange range;
  std::optional<Stamp> stamp;
};

inline uint64_t pages_in(FileRange range) { return range.length() / page_size(); }

// Through the mapping: commits the pages.
void expect_zero(MemoryFile& file, FileRange range, const char* when);
// REQUIRES: the caller is the sole owner; the holding has a stamp.
void write_stamps(MemoryFile& file, const Holding& holding);
// The stamps, or, where there is none, that the pages are blank.
void expect_intact(MemoryFile& file, const Holding& holding, const char* when);

}  // namespace pgalloc::torture
