// What the kernel is asked to report: usage near a limit, and reclaim that found nothing.

#include <sys/eventfd.h>

#include <exception>
#include <new>
#include <utility>

#include "guard/guard.h"
#include "os/syscalls.h"
#include "os/thread.h"

namespace pgalloc {

using os::sys;

// v1: the kernel says when usage gets near, between two samples, and when it looks for memory in vain.
// Without the lock: registering waits for a grace period of the kernel, tens of milliseconds, in which
// the guard must not stand still.
void Guard::arm() {
  struct Wish {
    LevelFiles files;
    uint64_t threshold = 0;  // none
    bool vain_reclaim = false;
  };
  std::vector<Wish> wishes;
  uint64_t generation = 0;
  {
    MutexLock lock(mu_);
    GuardPlan plan(1);
    sample(plan);
    generation = limits_.generation();
    for (const Watched& watched : limits_.levels()) {
      if (!watched.level.is_v1_group()) continue;
      Wish wish{watched.level.files()};
      if (watched.reading.limited()) wish.threshold = watched.reading.limit - headroom_of(watched);
      if (wish.threshold == watched.threshold_bytes) wish.threshold = 0;
      wish.vain_reclaim = !watched.vain_reclaim.open();
      if (wish.threshold != 0 || wish.vain_reclaim) wishes.push_back(std::move(wish));
    }
  }
  for (const Wish& wish : wishes) {
    const auto level = MemoryLevel::open(wish.files);
    if (!level) continue;
    const auto registered = [](auto registers) {
      os::Descriptor event(sys().eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
      return event.open() && registers(event.fd()) ? std::move(event) : os::Descriptor{};
    };
    os::Descriptor threshold, vain_reclaim;
    if (wish.threshold != 0) {
      threshold =
          registered([&](int fd) { return level->set_usage_threshold(fd, wish.threshold); });
    }
    // Of the root group it would tell of the whole machine.
    if (wish.vain_reclaim && !level->is_root()) {
      vain_reclaim = registered([&](int fd) { return level->tell_of_vain_reclaim(fd); });
    }
    MutexLock lock(mu_);
    if (limits_.generation() != generation) return;
    for (Watched& watched : limits_.levels()) {
      if (watched.level.files() != wish.files) continue;
      if (threshold.open()) {
        watched.threshold = std::move(threshold);
        watched.threshold_bytes = wish.threshold;
      }
      if (vain_reclaim.open()) {
        watched.vain_reclaim = std::move(vain_reclaim);
        watched.hits = watched.hits_before = watched.level.hits().value_or(0);
      }
      break;
    }
  }
}

// Has another thread arm what changed.
void Guard::start_arming() {
  arms_again_ = true;
  if (arms_ || parks_ > 0) return;
  try {
    const os::WithoutSignals quiet;
    arms_ = true;
    std::thread([this] {
      MutexLock lock(mu_);
      arming_id_ = os::thread_id();
      // park() waits for one round at most: what changes meanwhile is armed when it is over.
      while (parks_ == 0 && std::exchange(arms_again_, false)) {
        mu_.unlock();
        try {
          arm();
        } catch (const std::bad_alloc&) {  // NOLINT: it samples all the same
        }
        mu_.lock();
      }
      arms_ = false;
      armed_.notify_all();
    }).detach();
  } catch (const std::exception&) {  // no thread, or no memory for one: the next change tries again
    arms_ = false;
  }
}

}  // namespace pgalloc
