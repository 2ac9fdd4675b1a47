// Purpose: the leases that a forked child gets on the pages that were in use at the moment of the fork,
// so that its views stay what they are whatever the parent does.
//
// Thread safety: any thread; each sees its own forks only.
//
// Pages that no handle of the parent had pinned are left out: a child must not keep the parent from
// discarding them, and has no handle on what only other processes hold. So are files that are still
// loading an image.
#pragma once

#include <memory>
#include <vector>

#include "file/memory_file.h"

namespace pgalloc {

// On one file.
struct ForkLease {
  std::shared_ptr<MemoryFile> file;  // nullptr if it is being destroyed
  bool taken = false;                // the parent holds a lease on each page, for the child
  References::Counts pages;          // with the number of the parent's handles
};

class ForkLeases {
 public:
  // The next fork of this thread is followed by take(), in the parent and in the child.
  static void arm();
  // What that fork took. Nothing is armed afterwards.
  static std::vector<ForkLease> take();
};

}  // namespace pgalloc
