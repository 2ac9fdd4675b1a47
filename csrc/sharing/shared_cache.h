// Purpose: what the broker asks of a cache whose values other processes read: to let a process in, and to forget it.
//
// Thread safety: any thread; the broker's lock may be held.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "os/descriptor.h"

namespace pgalloc {

class SharedCache {
 public:
  virtual ~SharedCache() = default;

  // The file with its index, to be mapped for reading.
  virtual Result<os::Descriptor> index_file() const = 0;
  // A process more that reads: its number. What it holds it writes to a file of its own, to be mapped for writing.
  virtual Result<uint64_t> attach() = 0;
  // The same for a child of it, which holds what its parent holds.
  virtual Result<uint64_t> attach_copy_of(uint64_t reader) = 0;
  virtual Result<os::Descriptor> holds_file(uint64_t reader) const = 0;
  // It holds nothing any more. Harmless when repeated. Needs no memory.
  virtual void detach(uint64_t reader) noexcept = 0;
};

}  // namespace pgalloc
