// Purpose: what the guard of a peer can give back: what is unpinned in files of this process, and what
// the owners of the pages that it shares discard when they are asked to.
//
// Thread safety: any thread.
//
// An owner that has nothing to give, or does not answer, is left alone for a while: see
// OwnerLink::ask_for_room(). So a stopped owner delays a commit once, not each time.
#pragma once

#include "guard/discard_source.h"

namespace pgalloc {

class SharedDiscards final : public DiscardSource {
 public:
  // From here on the guard of this process asks it. May be repeated.
  static void install();

  Discarded discard(uint64_t bytes_max, Time deadline) override {
    return discard_for(0, bytes_max, deadline);
  }
  Discarded discard_for(uint64_t commit, uint64_t bytes_max, Time deadline) override;
  uint64_t release_kept(Time deadline) override;
  uint64_t sweep(uint64_t bytes_max, bool waiting) override;
  bool any_unpinned() override;
  void start_evictions() override;
  void wait_for_reclaim(Time deadline) override;
};

}  // namespace pgalloc
