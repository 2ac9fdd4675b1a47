// Purpose: which values a process holds: for each holder (the pages of a value, or a slab of small ones) how often.
// Each process writes its own counts, in memory of its own that the writer of the index reads. A process that dies
// holds nothing any more, because its counts go with it.
//
// Thread safety: any thread of the process that writes them; the writer of the index reads.
//
// Invariant: whoever has counted itself before it found the version of an entry unchanged has the value; the writer
// makes the version odd before it looks at the counts. Both are in the one order of sequentially consistent operations,
// so that one of them sees the other.
#pragma once

#include <atomic>
#include <cstdint>

namespace pgalloc::cache {

template <class Memory>
class Holds {
 public:
  using Count = typename Memory::template Atomic<uint32_t>;

  Holds(Count* counts, uint64_t size) : counts_(counts), size_(size) {}

  // False, without effect, for a holder that cannot be.
  bool add(uint32_t holder) {
    if (holder >= size_) return false;
    counts_[holder].fetch_add(1, std::memory_order_seq_cst);
    return true;
  }
  // REQUIRES: add(). What was read before is read by then.
  void remove(uint32_t holder) { counts_[holder].fetch_sub(1, std::memory_order_release); }
  // For the writer: whether the process may be reading there.
  bool any(uint32_t holder) const {
    return holder < size_ && counts_[holder].load(std::memory_order_seq_cst) != 0;
  }

 private:
  Count* counts_;
  uint64_t size_;
};

}  // namespace pgalloc::cache
