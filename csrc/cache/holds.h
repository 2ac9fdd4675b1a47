// Purpose: which values a process holds, and which it has found: for each holder (the pages of a value, or a slab of
// small ones) a word. Each process writes its own words, in memory of its own that the writer of the index reads. A
// process that dies holds nothing any more, because its words go with it.
//
// Thread safety: any thread of the process that writes them; the writer of the index reads.
//
// Invariants
//   1. A reader counts itself before it looks whether the version of an entry is what it was; the writer makes the
//      version odd before it looks at the counts. All of it is in the one order of sequentially consistent
//      operations, so one of the two sees the other.
//   2. What a process writes here harms itself: what it claims to hold stays until it ends.
#pragma once

#include <atomic>
#include <cstdint>

namespace pgalloc::cache {

template <class Memory>
class Holds {
 public:
  // Hits in the upper half, holds in the lower: one operation counts both.
  using Word = typename Memory::template Atomic<uint64_t>;

  Holds(Word* words, uint64_t size) : words_(words), size_(size) {}

  // A hold and a hit. False, without effect, for a holder that cannot be.
  bool add(uint32_t holder) {
    if (holder >= size_) return false;
    words_[holder].fetch_add(kHit + 1, std::memory_order_seq_cst);
    return true;
  }
  // Neither of the two.
  void undo(uint32_t holder) { words_[holder].fetch_sub(kHit + 1, std::memory_order_release); }
  // The hold. REQUIRES: add(). What was read before is read by then.
  void remove(uint32_t holder) { words_[holder].fetch_sub(1, std::memory_order_release); }
  // A hit of what is not held.
  void count_hit(uint32_t holder) {
    if (holder < size_) words_[holder].fetch_add(kHit, std::memory_order_relaxed);
  }

  // For the writer: whether the process may be reading there.
  bool any(uint32_t holder) const {
    return holder < size_ && words_[holder].load(std::memory_order_seq_cst) % kHit != 0;
  }
  // How often there was a hit, modulo 2^32.
  uint32_t hits(uint32_t holder) const {
    if (holder >= size_) return 0;
    return static_cast<uint32_t>(words_[holder].load(std::memory_order_relaxed) / kHit);
  }

 private:
  static constexpr uint64_t kHit = uint64_t{1} << 32;

  Word* words_;
  uint64_t size_;
};

}  // namespace pgalloc::cache
