// Purpose: what the broker asks of a cache whose values other processes read: to let a process in, and to forget it.
//
// Thread safety: any thread; the broker's lock may be held.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"
#include "base/thread_annotations.h"
#include "os/descriptor.h"
#include "sharing/wire.h"

namespace pgalloc {

class SharedCache {
 public:
  virtual ~SharedCache() = default;
  // Those of this process that live, by their numbers; nullptr if there is none.
  static std::shared_ptr<SharedCache> find(uint64_t id);

  virtual uint64_t id() const = 0;
  // Whether all its values are in memory. Until then no process is let in: it could not wait for them.
  virtual bool is_complete() const = 0;
  // What it says of itself, and the file with its index, to be mapped for reading.
  virtual std::string described() const = 0;
  virtual Result<os::Descriptor> index_file() const = 0;
  // A process more that reads: its number. What it holds it writes to a file of its own, to be mapped for writing.
  virtual Result<uint64_t> attach() = 0;
  // The same for a child of it, which holds what its parent holds.
  virtual Result<uint64_t> attach_copy_of(uint64_t reader) = 0;
  virtual Result<os::Descriptor> holds_file(uint64_t reader) const = 0;
  // It holds nothing any more. Harmless when repeated. Needs no memory.
  virtual void detach(uint64_t reader) noexcept = 0;
  // What one of them wants: the answer, or nothing if it has to wait for memory and is to be asked again. `progress` is
  // the request's own, 0 at first. kSharing, with an empty text, for what no reader sends.
  virtual Result<std::optional<std::string>> call(uint64_t reader, wire::CacheCall call,
                                                  std::string_view arguments,
                                                  uint64_t* progress) = 0;

  // Around a fork: the list does not change from the first to one of the others. In a child it is empty.
  static void lock_for_fork() NO_THREAD_SAFETY_ANALYSIS;
  static void unlock_in_parent() NO_THREAD_SAFETY_ANALYSIS;
  static void reset_in_child() NO_THREAD_SAFETY_ANALYSIS;

 protected:
  // In the constructor of what is whole by then, and at the beginning of its end.
  static void list(const std::shared_ptr<SharedCache>& cache);
  static void unlist(uint64_t id) noexcept;
};

}  // namespace pgalloc
