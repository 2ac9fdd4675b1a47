// Purpose: what a forked child inherits of its parent's files: leases on the pages that were in use at
// the moment of the fork, so that its views stay what they are whatever the parent does.
//
// Thread safety: any thread; each sees its own forks only.
//
// Pages that no handle of the parent had pinned are left out: a child must not keep the parent from
// discarding them, and has no handle on what only other processes hold.
// So are files that are still loading an image.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "base/units.h"

namespace pgalloc {

class MemoryFile;

// One file. If it is ready, the parent holds a lease on each page, for the child.
struct InheritedFile {
  std::shared_ptr<MemoryFile> file;  // nullptr if it is being destroyed
  bool ready = false;
  std::vector<std::pair<FileRange, uint32_t>> pages;  // with the number of the parent's handles
};

class Inheritance {
 public:
  // The next fork of this thread is followed by take(), in the parent and in the child.
  static void arm();
  // What that fork prepared. Nothing is armed afterwards.
  static std::vector<InheritedFile> take();

  // For the fork handlers of LiveFiles.
  static bool armed();
  static void prepare(MemoryFile* file);
};

}  // namespace pgalloc
