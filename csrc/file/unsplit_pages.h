// Purpose: parts of huge pages that were punched and are still in memory. While something in the kernel has a
// reference on a huge page (a system call that reads it, a device, DAMON) it cannot be split: a punch then only
// zeroes. They are punched again, soon at first.
//
// Thread safety: externally synchronised (the file's lock).
//
// Invariants
//   1. They are being released still: they are in the account, and nothing else's.
//   2. There are kMax of them at most. More are treated as given back: those of huge pages that are used in
//      part are found by the next commit scan, others are free although they are in memory.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "base/units.h"

namespace pgalloc {

class UnsplitPages {
 public:
  using Time = std::chrono::steady_clock::time_point;

  struct Entry {
    FileRange range;
    int punches = 1;
    Time due;  // when it is punched again
  };

  // It was punched, `punches` times by now. False if there is no room.
  bool add(FileRange range, int punches, Time now) {
    if (count_ == kMax) return false;
    const auto delay = kFirst * (int64_t{1} << std::min(punches - 1, kDoublings));
    entries_[count_++] = {range, punches, now + std::min<Time::duration>(delay, kLongest)};
    return true;
  }
  // When the first of them is punched again.
  std::optional<Time> next_due() const {
    if (count_ == 0) return std::nullopt;
    return std::min_element(entries_.begin(), entries_.begin() + count_, is_due_before)->due;
  }
  // One that is due.
  std::optional<Entry> take(Time now) {
    const auto end = entries_.begin() + count_;
    const auto first = std::min_element(entries_.begin(), end, is_due_before);
    if (first == end || first->due > now) return std::nullopt;
    const Entry entry = *first;
    *first = entries_[--count_];
    return entry;
  }
  uint64_t bytes() const { return sum(0); }
  // Of those that were punched so often that nothing waits for them any more.
  uint64_t stubborn_bytes() const { return sum(kPunchesAwaited); }
  void clear() { count_ = 0; }

 private:
  static constexpr size_t kMax = 256;
  static constexpr std::chrono::microseconds kFirst{250};
  static constexpr std::chrono::seconds kLongest{1};
  static constexpr int kDoublings = 20;
  static constexpr int kPunchesAwaited = 10;  // a quarter of a second

  static bool is_due_before(const Entry& a, const Entry& b) { return a.due < b.due; }
  uint64_t sum(int punches_min) const {
    uint64_t bytes = 0;
    for (size_t i = 0; i < count_; ++i) {
      if (entries_[i].punches >= punches_min) bytes += entries_[i].range.length();
    }
    return bytes;
  }

  std::array<Entry, kMax> entries_;
  size_t count_ = 0;
};

}  // namespace pgalloc
