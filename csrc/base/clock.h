// Purpose: the time that throttles commit scans and measures the guard's work; tests can move it by
// hand.
//
// Thread safety: any thread.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace pgalloc {

class Clock {
 public:
  std::chrono::nanoseconds now() {
    if (!manual_.load(std::memory_order_acquire)) {
      return std::chrono::steady_clock::now().time_since_epoch();
    }
    return std::chrono::nanoseconds(manual_ns_.fetch_add(tick_ns_.load()));
  }

  // From here on time stands still at `start`, but for `tick` at each reading and for advance().
  void use_manual(std::chrono::nanoseconds start, std::chrono::nanoseconds tick) {
    manual_ns_ = start.count();
    tick_ns_ = tick.count();
    manual_.store(true, std::memory_order_release);
  }
  void advance(std::chrono::nanoseconds by) { manual_ns_ += by.count(); }
  void use_real() { manual_.store(false, std::memory_order_release); }

 private:
  std::atomic<bool> manual_{false};
  std::atomic<int64_t> manual_ns_{0};
  std::atomic<int64_t> tick_ns_{0};
};

}  // namespace pgalloc
