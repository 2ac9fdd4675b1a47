// Purpose: how long parts of a huge page wait for the rest of it. To give a part back splits the huge page, and
// costs a system call for each part; a huge page that is freed piece by piece goes whole, in one call, if the last
// piece comes in time.
//
// Thread safety: externally synchronised (the file's lock).
//
// Invariants
//   1. A part waits for no longer than kDelay, and until the thread has given back what goes before it.
//   2. When more than kBytesMax wait, they go.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

#include "base/units.h"

namespace pgalloc {

class PartDelay {
 public:
  using Time = std::chrono::steady_clock::time_point;
  static constexpr std::chrono::milliseconds kDelay{50};
  static constexpr uint64_t kBytesMax = uint64_t{32} << 20;
  // They wait only where memory limits leave so much: what others commit meanwhile must not meet them.
  static constexpr uint64_t kRoom = 8 * kBytesMax;

  // Of parts of `bytes` together, those go now that begin below what this returns; nothing if all wait. When it is
  // time, or if nothing may wait, those that are there go, the highest first; what comes above them meanwhile waits.
  std::optional<uint64_t> due_below(uint64_t bytes, bool at_once, Time now) {
    if (bytes == 0) {
      due_.reset();
      return std::nullopt;
    }
    if (!due_) wait_anew(now);
    if (at_once || bytes > kBytesMax) {
      due_ = now;
      below_ = UINT64_MAX;
    }
    return now < *due_ ? std::nullopt : std::optional(below_);
  }
  void taken(FileRange part) { below_ = part.start; }
  // None of those that go is left.
  void wait_anew(Time now) {
    due_ = now + kDelay;
    below_ = UINT64_MAX;
  }
  // Whether a thread that sleeps until next_due() has to know that there are so many.
  bool is_news(uint64_t bytes) const { return bytes > (due_ ? kBytesMax : 0); }
  std::optional<Time> next_due() const { return due_; }

 private:
  std::optional<Time> due_;
  uint64_t below_ = UINT64_MAX;  // those that go are below this
};

}  // namespace pgalloc
