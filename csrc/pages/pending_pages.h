// Purpose: the pages of a restored file whose contents are still in the image.
//
//            start             arrived
//   waiting -------> arriving -----------> (not pending any more)
//     ^ |  put_back     |                            ^
//     | |<--------------+--> broken                  |
//     | |                broke: could not be loaded  |
//     | +----------> leaving ------------------------+
//     +---------------+   drop: it was decommitted
//          put_back
//
// Who moves a page along each arrow: a thread that loads the page's extent, or one that decommits
// it. Dropping the last reference forgets it if it waits or is broken. While it is arriving or
// leaving, a thread is at work on it: a page that arrives is kept from the reclaimer, and a thread
// that makes one leave holds a reference.
//
// Thread safety: externally synchronised (the file's lock).
//
// Invariants
//   1. Waiting and broken pages are used (PageStates::verify() proves it).
//   2. bytes_[s] is the total length of the ranges in state s.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/units.h"
#include "segment/segment_set.h"

namespace pgalloc {

enum class Arrival : uint8_t { kWaiting = 0, kArriving = 1, kBroken = 2, kLeaving = 3 };

struct PendingTraits {
  struct Value {
    Arrival arrival = Arrival::kWaiting;
    uint32_t error = 0;  // of broken pages: which
    friend bool operator==(const Value&, const Value&) = default;
  };
  static constexpr bool kTrackGaps = false;
  static constexpr uint64_t kGapAlignment = kUsualHugePageSize;
  static bool merge(Value& left, const Value& right) { return left == right; }
  static Value split(Value& value, FileRange, uint64_t) { return value; }
};

class PendingPages {
 public:
  using Set = segment::SegmentSet<PendingTraits>;

  bool empty() const { return set_.empty(); }
  const Set& set() const { return set_; }
  uint64_t bytes(Arrival arrival) const { return bytes_[static_cast<size_t>(arrival)]; }
  // Since clear(): all that was expected, and what was forgotten of it before it arrived.
  uint64_t expected_bytes() const { return expected_bytes_; }
  uint64_t forgotten_bytes() const { return forgotten_bytes_; }
  // The first range in `range` that is in this state.
  std::optional<FileRange> find(FileRange range, Arrival arrival) const;
  // The error of the first broken page in `range`.
  std::optional<uint32_t> find_error(FileRange range) const;
  // The first part of `range` that is not arriving.
  std::optional<FileRange> first_at_rest(FileRange range) const;

  // REQUIRES: nothing in `range` is pending.
  void expect(FileRange range);
  // waiting -> arriving or leaving, within `range`: what changed.
  std::vector<FileRange> start(FileRange range, Arrival to = Arrival::kArriving);
  // REQUIRES: every page of `range` is arriving.
  void arrived(FileRange range);
  void broke(FileRange range, uint32_t error);
  // REQUIRES: every page of `range` is leaving.
  void drop(FileRange range);
  // REQUIRES: every page of `range` is arriving, or every one is leaving.
  void put_back(FileRange range);
  // Bytes that may still come.
  uint64_t outstanding_bytes() const {
    return bytes(Arrival::kWaiting) + bytes(Arrival::kArriving) + bytes(Arrival::kLeaving);
  }
  // Waiting and broken pages of `range` are pending no more. After reserve(), so many of these calls cannot fail.
  void forget(FileRange range);
  void reserve(size_t calls) { set_.reserve(4 * calls); }
  void clear();

  std::optional<std::string> verify() const;

 private:
  uint64_t& bytes_in(Arrival arrival) { return bytes_[static_cast<size_t>(arrival)]; }
  void remove(FileRange range, Arrival from);
  void set_state(FileRange range, PendingTraits::Value value);

  Set set_;
  std::array<uint64_t, 4> bytes_{};
  uint64_t expected_bytes_ = 0;
  uint64_t forgotten_bytes_ = 0;
};

}  // namespace pgalloc
