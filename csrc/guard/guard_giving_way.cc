// An operator lowers a limit below what is in use, and v1 refuses: the guard lets the next try succeed.

#include <chrono>

#include "guard/event.h"
#include "guard/guard.h"

namespace pgalloc {

namespace {

// A limit that was refused is tried again: so long usage does not grow by more than so much.
constexpr std::chrono::seconds kYield{10};
constexpr uint64_t kYieldRoom = uint64_t{32} << 20;

}  // namespace

// v1 refuses a limit below the usage after it looked for memory at that level. No charge has met the
// limit then; where one did lately, it is no sign of that.
void Guard::hear_of_vain_reclaim() {
  for (Watched& watched : limits_.levels()) {
    if (!clear_event(watched.vain_reclaim)) continue;
    const auto hits = watched.level.hits();
    if (!hits || *hits != watched.hits_before) continue;
    watched.yields_to = 0;  // until it is known how far it can
    gives_way_ = true;
  }
}

void Guard::end_yielding_if_due() {
  if (std::chrono::steady_clock::now() < yields_until_) return;
  for (Watched& watched : limits_.levels()) watched.yields_to = UINT64_MAX;
}

// Gives back all there is, and keeps it so for a while: the operator will try again.
void Guard::give_way() {
  raise(Alarm::kLow);
  const Time until = std::chrono::steady_clock::now() + kYield;
  for (bool exhausted = false; !exhausted && !stops_ && std::chrono::steady_clock::now() < until;) {
    mu_.unlock();
    const DiscardPass pass = discard(kBatchBytes, 0);
    mu_.lock();
    count(pass);
    exhausted = pass.exhausted;
  }
  yields_until_ = std::chrono::steady_clock::now() + kYield;
  for (Watched& watched : limits_.levels()) {
    if (watched.yields_to == UINT64_MAX) continue;
    const auto reading = watched.level.read(MemoryLevel::Depth::kUsage);
    watched.yields_to = reading ? reading->usage + kYieldRoom : UINT64_MAX;
  }
}

}  // namespace pgalloc
