// Purpose: how much freed memory may wait for those who ask for pages that are written in full at once, rather
// than go back to the kernel (row F6). The budget is what was asked for lately: what is asked for again and
// again is recycled, and a program that never asks keeps nothing.
//
// Thread safety: externally synchronised (the file's lock).
//
// Invariants
//   1. What was asked for counts for kSlices slices of time, the one in which it was asked included.
//   2. What may wait and what is used are together no more than the most that was used in that time. What is
//      used is looked at whenever something is asked for.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>

namespace pgalloc {

class ReleaseBudget {
 public:
  using Time = std::chrono::steady_clock::time_point;
  static constexpr int kSlices = 4;
  static constexpr std::chrono::milliseconds kSlice{150};

  // Pages for `bytes` were asked for, and are `used` bytes with the others.
  void asked(uint64_t bytes, uint64_t used, Time now) {
    if (now < refused_until_) return;
    advance(now);
    Slice& slice = slices_[newest_ % kSlices];
    slice.asked += bytes;
    slice.most_used = std::max(slice.most_used, used);
  }
  // So much may wait while `used` bytes are used.
  uint64_t bytes(uint64_t used, Time now) {
    advance(now);
    uint64_t asked = 0;
    for (const Slice& slice : slices_) asked += slice.asked;
    return std::min(asked, most_used() - std::min(used, most_used()));
  }
  // What was used at the most, as of the last call.
  uint64_t most_used() const {
    uint64_t most = 0;
    for (const Slice& slice : slices_) most = std::max(most, slice.most_used);
    return most;
  }
  // When there may be less.
  Time next_change() const { return Time(kSlice * (newest_ + 1)); }
  // Nothing waits from here on, and what is asked for until then does not count.
  void refuse_until(Time until) {
    slices_ = {};
    refused_until_ = until;
  }
  bool refuses(Time now) const { return now < refused_until_; }

 private:
  struct Slice {
    uint64_t asked = 0;
    uint64_t most_used = 0;
  };

  void advance(Time now) {
    const int64_t number = now.time_since_epoch() / kSlice;
    if (number - newest_ >= kSlices) slices_ = {};
    for (; newest_ < number && number - newest_ < kSlices; ++newest_) {
      slices_[(newest_ + 1) % kSlices] = {};
    }
    newest_ = std::max(newest_, number);
  }

  std::array<Slice, kSlices> slices_{};
  int64_t newest_ = 0;  // its number, counted from the clock's beginning
  Time refused_until_{};
};

}  // namespace pgalloc
