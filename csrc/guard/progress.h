// Purpose: whether discards bring anything where it counts. What the owner of a peer's pages says that it gave
// back need not be true, and others may take what goes.
//
// Thread safety: externally synchronised.
#pragma once

#include <algorithm>
#include <cstdint>

namespace pgalloc {

class Progress {
 public:
  // False once more memory was not available for so many discards.
  bool seen(uint64_t available) {
    passes_ = available > best_ ? 0 : passes_ + 1;
    best_ = std::max(best_, available);
    return passes_ < kVainPasses;
  }

 private:
  static constexpr int kVainPasses = 64;
  uint64_t best_ = 0;
  int passes_ = 0;
};

}  // namespace pgalloc
