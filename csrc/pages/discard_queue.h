// Purpose: in which order unpinned allocations go: the policies.
//
//   lru      the one unpinned longest ago (least recently used); pinning takes it out, unpinning puts
//            it last.
//   sieve    in the order they came, but one that was pinned since it was last looked at is passed
//            over (Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024).
//   s3-fifo  newcomers wait in a small queue, a tenth of the bytes; those pinned there more than
//            once, and those that come back soon after they left, go to the main queue, where each
//            visit saves an entry once (Yang et al., "FIFO Queues are All You Need for Cache
//            Eviction", SOSP 2023).
//
// An allocation that was discarded leaves its queue; if it is written to before it is pinned again,
// Discarder::sweep() finds that.
//
// A new policy: an enumerator and its name below, a case in take_victim(), in the test a reference of
// ten lines, a fault in stress/mutation/named.toml; in Python a member of cache/policy.py, lines in
// docs/cache.md and the README (their tables come from benchmarks/policies.py).
//
// Thread safety: externally synchronised (the file's lock), but for the counts.
//
// Invariant: an entry is in one of the policy's lists, or in none.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pages/discardable.h"
#include "pages/ghosts.h"

namespace pgalloc {

enum class DiscardPolicy : uint8_t { kLru, kSieve, kS3Fifo };
// What Python calls them.
inline constexpr std::array<std::string_view, 3> kDiscardPolicyNames{"lru", "sieve", "s3-fifo"};

class DiscardQueue {
 public:
  // With `tells_ids`, the ids of what was discarded wait in take_discarded_ids().
  // `payer`: who pays for the memory of its entries, where that is not this process.
  explicit DiscardQueue(DiscardPolicy policy, bool tells_ids = false, std::string payer = {})
      : policy_(policy), tells_ids_(tells_ids), payer_(std::move(payer)) {}

  const std::string& payer() const { return payer_; }

  size_t size() const { return small_.size() + main_.size(); }
  // How old the next victim is, about; nothing if the queue is empty, or if no entry could go when
  // last asked.
  std::optional<uint64_t> front_order() const;

  // The entry was unpinned, or pinned. May allocate, before it changes anything.
  void unpinned(Discardable& entry);
  void pinned(Discardable& entry);
  // It leaves for good.
  void remove(Discardable& entry);

  // What goes next; nullptr if nothing can. It is in no list afterwards: the caller says what became
  // of it by discarded() or refuse().
  Discardable* take_victim();
  void discarded(const Discardable& entry);
  // It cannot go now: as if it had come last.
  void refuse(Discardable& entry);

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
  Discardable* take_lru();
  Discardable* take_by_sieve();
  Discardable* take_by_s3_fifo();
  void insert(Discardable& entry);
  void unlink(Discardable& entry);
  void move_back(DiscardList& to, Discardable& entry);

  const DiscardPolicy policy_;
  const bool tells_ids_;
  const std::string payer_;
  DiscardList small_;  // s3-fifo only
  DiscardList main_;
  Discardable* hand_ = nullptr;  // sieve: where it looks next; nullptr: at the oldest
  Ghosts ghosts_;                // s3-fifo only
  bool stuck_ = false;           // all entries are held, until one is unpinned
  std::vector<uint64_t> discarded_ids_;
  std::atomic<uint64_t> discards_{0};
  std::atomic<uint64_t> hits_{0};
};

}  // namespace pgalloc
