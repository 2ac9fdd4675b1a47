#include "torture/watchers.h"

#include <chrono>
#include <thread>
#include <vector>

#include "torture/random.h"
#include "torture/verdict.h"

namespace pgalloc::torture {
namespace {

// time: the load: workers need the lock, too
void pause(std::chrono::microseconds time) { std::this_thread::sleep_for(time); }

}  // namespace

void watch_usage(MemoryFile& file, const std::atomic<bool>& stop) {
  Random random(1);
  while (!stop) {
    const std::vector<uint32_t> one_memcg{static_cast<uint32_t>(random.below(4))};
    const Result<bool> current = file.scanner().update(random.one_in(4) ? &one_memcg : nullptr);
    if (!current.ok()) expect_ok(current.status(), "update_usage");
    // A scan of everything may not begin so soon after the last one. Here it may.
    file.use_real_clock();

    const LedgerSnapshot ledger = file.ledger().snapshot();
    for (size_t kind = 0; kind < kMemoryKinds; ++kind) {
      uint64_t memcgs = 0;
      for (const auto& [id, bytes] : ledger.memcgs) memcgs += bytes[kind];
      if (memcgs > ledger.total[kind]) fail("the memory cgroups have more than there is");
    }
    if (file.stats().quarantined_bytes > 0) fail("pages could be neither punched nor zeroed");
    pause(std::chrono::microseconds(random.below(500)));
  }
}

void watch_invariants(MemoryFile& file, const std::atomic<bool>& stop) {
  while (!stop) {
    if (const auto broken = file.verify()) fail("verify: %s", broken->c_str());
    // It holds the metadata lock for its whole length: leave the workers some time.
    pause(std::chrono::milliseconds(10));
  }
}

}  // namespace pgalloc::torture
