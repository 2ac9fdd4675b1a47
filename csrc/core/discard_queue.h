// Purpose: in which order unpinned allocations go: the policies.
//
//   oldest   the one unpinned longest ago; pinning takes it out, unpinning puts it last. For a cache
//            this is least recently used.
//   sieve    in the order they came, but one that was pinned since it was last looked at is passed
//            over (Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024).
//   s3-fifo  newcomers wait in a small queue, a tenth of the bytes; those pinned there more than
//            once, and those that come back soon after they left, go to the main queue, where each
//            visit saves an entry once (Yang et al., "FIFO Queues are All You Need for Cache
//            Eviction", SOSP 2023).
//
// An allocation that was discarded and is still unpinned is spent: nothing is expected of it, but
// somebody may have written to it since, so it stays within reach.
//
// Thread safety: externally synchronised (MemoryFile::mu_), but for the counts.
//
// Invariant: an entry is waiting (in one of the policy's lists), spent, or in no list.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/discardable.h"
#include "core/ghosts.h"

namespace pgalloc {

enum class DiscardPolicy : uint8_t { kOldest = 0, kSieve = 1, kS3Fifo = 2 };

class DiscardQueue {
 public:
  // With `tells_ids`, the ids of what was discarded wait in take_discarded_ids().
  explicit DiscardQueue(DiscardPolicy policy, bool tells_ids = false)
      : policy_(policy), tells_ids_(tells_ids) {}

  bool empty() const { return waiting_count() == 0 && spent_.empty(); }
  size_t waiting_count() const { return small_.size() + main_.size(); }
  size_t spent_count() const { return spent_.size(); }
  // How old the next victim is, about; nothing if nobody waits, or nobody could go when last asked.
  std::optional<uint64_t> front_order() const;

  // The entry was unpinned, or pinned. May allocate, before it changes anything.
  void unpinned(Discardable& entry);
  void pinned(Discardable& entry);
  // It leaves for good.
  void remove(Discardable& entry);

  // Who goes next; nullptr if nobody can. It is in no list afterwards: the caller says what became
  // of it by spend(), refuse() or nothing.
  Discardable* take_victim();
  void spend(Discardable& entry);
  // It cannot go now: as if it had come last.
  void refuse(Discardable& entry);
  // The spent entry that was looked at longest ago; the next call gives another one.
  Discardable* next_spent();

  // How often something of this queue was discarded. Any thread.
  uint64_t discards() const { return discards_.load(std::memory_order_acquire); }
  // How often contents that were still there were asked for. Any thread.
  uint64_t hits() const { return hits_.load(std::memory_order_relaxed); }
  void count_hit() { hits_.fetch_add(1, std::memory_order_relaxed); }
  std::vector<uint64_t> take_discarded_ids();
  // Takes entries of at least `bytes` out, in the order of the policy, and returns their ids. Those
  // that are held go only if the others do not suffice.
  std::vector<uint64_t> take_victims(uint64_t bytes);

  void clear();

 private:
  Discardable* take_oldest();
  Discardable* take_by_sieve();
  Discardable* take_by_s3_fifo();
  bool is_spent(const Discardable& entry) const { return entry.list == &spent_; }
  void insert(Discardable& entry);
  void unlink(Discardable& entry);
  void move_back(DiscardList& to, Discardable& entry);

  const DiscardPolicy policy_;
  const bool tells_ids_;
  DiscardList small_;  // s3-fifo only
  DiscardList main_;
  DiscardList spent_;
  Discardable* hand_ = nullptr;  // sieve: where it looks next; nullptr: at the oldest
  Ghosts ghosts_;                // s3-fifo only
  bool stuck_ = false;           // everybody is held, until somebody is unpinned
  std::vector<uint64_t> discarded_ids_;
  std::atomic<uint64_t> discards_{0};
  std::atomic<uint64_t> hits_{0};
};

}  // namespace pgalloc
