// Purpose: who keeps pages of a file and discards them by itself, because it has to do something before the pages go:
// a cache, which makes its values misses first. The file's discarder asks it when its turn has come.
//
// Thread safety: any thread, without any lock of the file; the registry's lock may be held.
#pragma once

#include <cstdint>
#include <optional>

namespace pgalloc {

// What a discard brought.
struct Discarded {
  uint64_t bytes = 0;       // of what was discarded; 0 when none is left that can go
  uint64_t given_back = 0;  // of pages that went to the kernel: some may never have been used
};

class Keeper {
 public:
  // See Discarder.
  virtual std::optional<uint64_t> next_order() = 0;
  virtual Discarded discard(uint64_t bytes_max, uint64_t order_max) = 0;

  // Around a fork, in the thread that forks. From the first to the second nothing of it changes. What is in use is not
  // kept then: so the child gets leases on it.
  virtual void before_fork() = 0;
  virtual void after_fork_in_parent() = 0;

 protected:
  ~Keeper() = default;  // the discarder owns none
};

}  // namespace pgalloc
