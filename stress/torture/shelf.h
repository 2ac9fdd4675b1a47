// Purpose: holdings that may be taken away: each is marked evictable under a number of its own, and
// goes either back to a worker or, through an eviction, to the reclaimer, but never both ways.
//
// Thread safety: any thread.
//
// Invariants
//   1. A holding on the shelf is marked, or is being marked, or is being evicted.
//   2. The thread that takes a holding out of its user's map is the only owner of its references.
//   3. Once every user was evicted, the shelf is empty.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

#include "file/memory_file.h"
#include "torture/random.h"
#include "torture/source.h"
#include "torture/stamps.h"

namespace pgalloc::torture {

class Shelf {
 public:
  Shelf(MemoryFile& file, Source& source) : file_(file), source_(source) {}

  void put(Random& random, const Holding& holding);
  // Takes a holding back, if the user that is picked has one.
  std::optional<Holding> take(Random& random);

  // For callback threads: evicts whatever is due, until the evictables are paused or shut down.
  void run_evictions();

  std::vector<Holding> contents() const;
  uint64_t evicted() const { return evicted_; }

 private:
  struct User {
    mutable std::mutex mu;
    uint64_t next_number = 0;
    std::map<uint64_t, Holding> holdings;
  };
  static std::optional<Holding> extract(User& user, uint64_t number);

  MemoryFile& file_;
  Source& source_;
  std::array<User, 4> users_;
  std::atomic<uint64_t> evicted_{0};
};

}  // namespace pgalloc::torture
