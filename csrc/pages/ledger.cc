#include "pages/ledger.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace pgalloc {

uint64_t LedgerSnapshot::sum() const {
  return std::accumulate(total.begin(), total.end(), uint64_t{0});
}

void LedgerSnapshot::add(const LedgerSnapshot& other) {
  for (size_t kind = 0; kind < kMemoryKinds; ++kind) total[kind] += other.total[kind];
  for (const auto& [memcg_id, bytes] : other.memcgs) {
    KindBytes& mine = memcgs[memcg_id];
    for (size_t kind = 0; kind < kMemoryKinds; ++kind) mine[kind] += bytes[kind];
  }
}

Status Ledger::inc(uint64_t bytes, MemoryKind kind, uint32_t memcg_id) {
  if (bytes == 0) return {};
  const auto k = static_cast<size_t>(kind);
  MutexLock lock(mu_);
  const uint64_t sum = std::accumulate(total_.begin(), total_.end(), uint64_t{0});
  if (bytes > UINT64_MAX - sum) {
    return Status::error(ErrorCode::kAccount, "the account would overflow");
  }
  if (memcg_id != 0) memcgs_[memcg_id][k] += bytes;
  total_[k] += bytes;
  return {};
}

Status Ledger::dec(uint64_t bytes, MemoryKind kind, uint32_t memcg_id) {
  const auto k = static_cast<size_t>(kind);
  MutexLock lock(mu_);
  PGALLOC_RETURN_IF_ERROR(check_dec(bytes, k, memcg_id));
  apply_dec(bytes, k, memcg_id);
  return {};
}

Status Ledger::move(uint64_t bytes, MemoryKind to, MemoryKind from, uint32_t memcg_id) {
  if (bytes == 0) return {};
  MutexLock lock(mu_);
  PGALLOC_RETURN_IF_ERROR(check_dec(bytes, static_cast<size_t>(from), memcg_id));
  if (memcg_id != 0) memcgs_[memcg_id][static_cast<size_t>(to)] += bytes;
  total_[static_cast<size_t>(to)] += bytes;
  apply_dec(bytes, static_cast<size_t>(from), memcg_id);
  return {};
}

void Ledger::clear() {
  MutexLock lock(mu_);
  total_ = {};
  memcgs_.clear();
}

KindBytes Ledger::total() const {
  MutexLock lock(mu_);
  return total_;
}

KindBytes Ledger::memcg(uint32_t memcg_id) const {
  MutexLock lock(mu_);
  const auto found = memcgs_.find(memcg_id);
  return found == memcgs_.end() ? KindBytes{} : found->second;
}

LedgerSnapshot Ledger::snapshot() const {
  MutexLock lock(mu_);
  return {total_, {memcgs_.begin(), memcgs_.end()}};
}

Status Ledger::check_dec(uint64_t bytes, size_t kind, uint32_t memcg_id) const {
  bool enough = total_[kind] >= bytes;
  if (memcg_id != 0 && bytes != 0) {
    const auto found = memcgs_.find(memcg_id);
    enough = enough && found != memcgs_.end() && found->second[kind] >= bytes;
  }
  if (enough) return {};
  return Status::error(ErrorCode::kAccount,
                       "less is booked than would be taken out: " + std::to_string(bytes) +
                           " bytes of kind " + std::to_string(kind));
}

void Ledger::apply_dec(uint64_t bytes, size_t kind, uint32_t memcg_id) {
  total_[kind] -= bytes;
  if (memcg_id == 0 || bytes == 0) return;
  const auto entry = memcgs_.find(memcg_id);
  entry->second[kind] -= bytes;
  const bool empty =
      std::all_of(entry->second.begin(), entry->second.end(), [](uint64_t b) { return b == 0; });
  if (empty) memcgs_.erase(entry);
}

uint64_t total_memory(uint64_t size, uint64_t used, uint64_t maximum) {
  constexpr uint64_t kMinimum = uint64_t{2} << 30;
  constexpr uint64_t kLargestPower = uint64_t{1} << 63;
  uint64_t total = std::max(size, kMinimum);
  if (used > total) total = used < kLargestPower ? std::bit_ceil(used) : used;
  if (maximum > 0) total = std::min(total, maximum);
  return total;
}

}  // namespace pgalloc
