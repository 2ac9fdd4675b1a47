// Purpose: what files ask of the guard: room before they commit memory, and its attention when
// something was unpinned.
//
// Thread safety: any thread, without any lock of a file.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "base/status.h"

namespace pgalloc {

// Memory that is about to be committed, from CommitGate::reserve() until it is, or will not be. It
// counts as used already.
class CommitReservation {
 public:
  CommitReservation() = default;
  ~CommitReservation() { end(); }
  CommitReservation(const CommitReservation&) = delete;
  CommitReservation& operator=(const CommitReservation&) = delete;

  void begin(std::atomic<uint64_t>& reserved_bytes, uint64_t bytes) {
    reserved_bytes_ = &reserved_bytes;
    bytes_ = bytes;
    reserved_bytes_->fetch_add(bytes);
  }
  // So much of it is committed by now, and counts by itself.
  void settle(uint64_t bytes) {
    bytes = std::min(bytes, bytes_);
    if (bytes > 0) reserved_bytes_->fetch_sub(bytes);
    bytes_ -= bytes;
  }
  void end() { settle(bytes_); }

 private:
  std::atomic<uint64_t>* reserved_bytes_ = nullptr;
  uint64_t bytes_ = 0;
};

class CommitGate {
 public:
  virtual ~CommitGate() = default;

  // To be called before `bytes` are committed: gives back what it takes to keep the headroom.
  // kOutOfMemory if a limit would be exceeded whatever is given back.
  // REQUIRES: `reservation` holds nothing.
  virtual Status reserve(uint64_t bytes, CommitReservation& reservation) = 0;
  // Whether so much cannot be committed now without touching the headroom.
  virtual bool lacks(uint64_t bytes) = 0;
  // There may be something to discard now. Cheap: called at each unpin.
  void note_unpinned() {
    if (wants_unpins_.load(std::memory_order_relaxed)) on_unpinned();
  }

 protected:
  virtual void on_unpinned() = 0;
  std::atomic<bool> wants_unpins_{true};
};

// The guard of this process.
CommitGate& commit_gate();

}  // namespace pgalloc
