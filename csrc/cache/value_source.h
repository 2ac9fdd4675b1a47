// Purpose: who is told when a value that is held is let go of: the store of this process's own cache, or what this process
// has of another's.
//
// Thread safety: any thread.
#pragma once

#include <cstdint>

#include "base/units.h"

namespace pgalloc::cache {

class ValueSource {
 public:
  virtual ~ValueSource() = default;
  // `hold` is what came with the value.
  virtual void let_go(uint64_t hold) = 0;
};

// A value that is held. It stays what it is until let_go(hold).
struct HeldValue {
  uint64_t hold = 0;
  FileRange pages;      // that it lies in
  uint64_t place = 0;   // in the file
  uint64_t length = 0;  // in bytes
};

}  // namespace pgalloc::cache
