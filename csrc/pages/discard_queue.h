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
// Thread safety: externally synchronised (the lock of the file, or of the cache).
//
// Invariant: an entry is in one of the policy's lists, or in none.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "pages/discardable.h"
#include "pages/ghosts.h"

namespace pgalloc {

enum class DiscardPolicy : uint8_t { kLru, kSieve, kS3Fifo };
// What Python calls them.
inline constexpr std::array<std::string_view, 3> kDiscardPolicyNames{"lru", "sieve", "s3-fifo"};

class DiscardQueue {
 public:
  // `payer`: who pays for the memory of its entries, where that is not this process.
  explicit DiscardQueue(DiscardPolicy policy, std::string payer = {})
      : policy_(policy), payer_(std::move(payer)) {}

  const std::string& payer() const { return payer_; }

  size_t size() const { return small_.size() + main_.size(); }
  // How old the next victim is, about; nothing if the queue is empty, or if no entry could go when
  // last asked.
  std::optional<uint64_t> front_order() const;

  // The entry was unpinned, or pinned. Without memory, s3-fifo remembers fewer of those that left.
  void unpinned(Discardable& entry);
  void pinned(Discardable& entry);
  // It leaves for good.
  void remove(Discardable& entry);

  // What goes next; nullptr if nothing can. It is in no list afterwards, but for refuse().
  Discardable* take_victim();
  // The same, of those that are held if there is no other.
  Discardable* take_victim_or_held();
  // It cannot go now: as if it had come last.
  void refuse(Discardable& entry);

  void clear();

 private:
  Discardable* take_lru();
  Discardable* take_by_sieve();
  Discardable* take_by_s3_fifo();
  void insert(Discardable& entry);
  void unlink(Discardable& entry);
  void move_back(DiscardList& to, Discardable& entry);

  const DiscardPolicy policy_;
  const std::string payer_;
  DiscardList small_;  // s3-fifo only
  DiscardList main_;
  Discardable* hand_ = nullptr;  // sieve: where it looks next; nullptr: at the oldest
  Ghosts ghosts_;                // s3-fifo only
  bool stuck_ = false;           // all entries are held, until one is unpinned
};

}  // namespace pgalloc
