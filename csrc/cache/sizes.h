// Purpose: how large things are: slabs and their slots, and what counts for the size of a cache.
//
// Small values share pages: a slab is cut into slots of one size.
//
//   value            slab
//   up to 512 B      a page
//   up to 3 KiB      four pages: less is left over
//   longer           none: it has pages of its own
//
// Thread safety: pure functions.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/units.h"
#include "cache/key_arena.h"

namespace pgalloc::cache {

inline constexpr uint64_t kSlotAlignment = 8;

// Values up to this length share pages. A longer one would have a slab nearly to itself.
inline uint64_t small_value_max() { return page_size() / 4 * 3; }

inline uint64_t slab_bytes_for(uint64_t length) {
  constexpr uint64_t kTiny = 512;
  return (length <= kTiny ? 1 : 4) * page_size();
}

// What a slab for values of this length holds most of.
inline uint32_t slot_bytes_for(uint64_t length) {
  const uint64_t slab = slab_bytes_for(length);
  const uint64_t wanted = align_up(std::max<uint64_t>(length, 1), kSlotAlignment);
  return static_cast<uint32_t>(slab / (slab / wanted) / kSlotAlignment * kSlotAlignment);
}

// Whether slabs may be so, here or in another version.
inline bool is_possible_slab(uint64_t slot_bytes, uint64_t slab_bytes) {
  return slab_bytes <= 64 * page_size() && slot_bytes >= kSlotAlignment && slot_bytes <= slab_bytes;
}

// The pages of a value that has them for itself.
inline uint64_t pages_for(uint64_t length) {
  return align_up(std::max<uint64_t>(length, 1), page_size());
}

// What the index takes for a value, in bytes: its entry, its share of buckets and of holders; its key; its time; its
// place among those of its tag, which may be the only one.
inline constexpr uint64_t kEntryBytes = 48 + 16 + 8;
inline uint64_t index_bytes_for(uint64_t key_length, bool expires, bool tagged,
                                uint64_t tag_length) {
  constexpr uint64_t kTime = 24;
  constexpr uint64_t kTag = 16 + 120;
  return kEntryBytes + KeyArena::bytes_for(key_length) + (expires ? kTime : 0) +
         (tagged ? kTag + tag_length : 0);
}

// What counts: pages, and what the index takes beyond an eighth of them. So values of a page and more, with short keys,
// count as their pages.
inline uint64_t counted(uint64_t page_bytes, uint64_t index_bytes) {
  const uint64_t free_of_charge = page_bytes / 8;
  return page_bytes + (index_bytes > free_of_charge ? index_bytes - free_of_charge : 0);
}

}  // namespace pgalloc::cache
