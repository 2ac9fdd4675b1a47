// Purpose: what the guard asks of all files together: to give memory back. It knows nothing else of
// files.
//
// Thread safety: any thread.
#pragma once

#include <chrono>
#include <cstdint>

namespace pgalloc {

class DiscardSource {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // Discards unpinned allocations of all files, those first that were unpinned first, until
  // `bytes_max` are back with the kernel, or the deadline has passed, or it is no use.
  struct Discarded {
    uint64_t given_back = 0;
    bool exhausted = false;  // nothing is left that can go
    bool fruitless = false;  // what went lately had no pages
    bool no_use() const { return exhausted || fruitless; }
  };
  virtual Discarded discard(uint64_t bytes_max, Time deadline) = 0;
  // The same so that `commit` bytes fit: what others do that give memory back for this process.
  virtual Discarded discard_for(uint64_t commit, uint64_t bytes_max, Time deadline) {
    (void)commit;
    return discard(bytes_max, deadline);
  }
  // Gives back freed pages that wait for a new owner, of all files, and lets none wait for a second. The bytes
  // that went before the deadline.
  virtual uint64_t release_kept(Time deadline) {
    (void)deadline;
    return 0;
  }
  // Gives back unpinned pages by address, see Discarder::sweep(). The bytes that went.
  virtual uint64_t sweep(uint64_t bytes_max, bool waiting) = 0;
  // Whether any page is unpinned.
  virtual bool any_unpinned() = 0;
  // Begins the evictions of every file whose users are to be asked under pressure (row A4).
  virtual void start_evictions() = 0;
  // Gives freed pages the time to get back to the kernel.
  virtual void wait_for_reclaim(Time deadline) = 0;

 protected:
  ~DiscardSource() = default;  // the guard owns none
};

}  // namespace pgalloc
