// Purpose: how much committed memory of which kind there is, in all and per memory cgroup.
//
// Thread safety: every method may be called from any thread.
//
// Invariants
//   1. For every kind, the entries of all memory cgroups together do not exceed the total.
//   2. A memory cgroup with nothing booked to it has no entry.
//   3. Memory cgroup 0 stands for "none": bookings to it show in the total only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/memory_kind.h"
#include "base/mutex.h"
#include "base/status.h"

namespace pgalloc {

using KindBytes = std::array<uint64_t, kMemoryKinds>;

struct LedgerSnapshot {
  KindBytes total{};
  std::map<uint32_t, KindBytes> memcgs;

  uint64_t sum() const;
  void add(const LedgerSnapshot& other);
};

class Ledger {
 public:
  // Fails with kAccount when an entry would overflow; nothing has changed then.
  Status inc(uint64_t bytes, MemoryKind kind, uint32_t memcg_id) EXCLUDES(mu_);
  // Fails with kAccount when an entry would drop below zero; nothing has changed then.
  Status dec(uint64_t bytes, MemoryKind kind, uint32_t memcg_id) EXCLUDES(mu_);
  Status move(uint64_t bytes, MemoryKind to, MemoryKind from, uint32_t memcg_id) EXCLUDES(mu_);
  void clear() EXCLUDES(mu_);

  KindBytes total() const EXCLUDES(mu_);
  KindBytes memcg(uint32_t memcg_id) const EXCLUDES(mu_);  // zeros when unknown
  LedgerSnapshot snapshot() const EXCLUDES(mu_);

 private:
  Status check_dec(uint64_t bytes, size_t kind, uint32_t memcg_id) const REQUIRES(mu_);
  void apply_dec(uint64_t bytes, size_t kind, uint32_t memcg_id) REQUIRES(mu_);

  mutable Mutex mu_{LockRank::kLedger};
  KindBytes total_ GUARDED_BY(mu_){};
  std::unordered_map<uint32_t, KindBytes> memcgs_ GUARDED_BY(mu_);
};

// Row K5: the memory size to show to a user of `used` bytes of a machine of `size` bytes: at
// least 2 GiB; more than `used` needs, as a power of two; never above `maximum` (0: no maximum).
uint64_t total_memory(uint64_t size, uint64_t used, uint64_t maximum);

}  // namespace pgalloc
