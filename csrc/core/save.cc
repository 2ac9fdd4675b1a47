// Section J, saving: what an image writer asks of a file.
#include <errno.h>
#include <fcntl.h>

#include "core/memory_file.h"
#include "core/operation.h"
#include "os/syscalls.h"

namespace pgalloc {

using os::sys;

Result<std::optional<MemoryFile::Capture>> MemoryFile::capture(
    std::chrono::steady_clock::time_point deadline) {
  PGALLOC_RETURN_IF_ERROR(check_open());
  if (!evictables_->empty()) {
    return Status::error(ErrorCode::kSnapshot,
                         "an evictable user is registered: evict before saving");
  }
  MutexLock lock(mu_);
  while (pages_.waste_bytes() + pages_.releasing_bytes() > 0) {
    PGALLOC_RETURN_IF_ERROR(check_open());
    ++reclaim_waiters_;
    reclaimer_work_.notify_all();
    const bool in_time = waste_shrank_.wait_until(mu_, deadline);
    --reclaim_waiters_;
    if (!in_time) return std::optional<Capture>();
  }
  PGALLOC_RETURN_IF_ERROR(check_open());
  return std::optional<Capture>({.file_size = file_->size(), .segments = pages_.owned_segments()});
}

Result<uint64_t> MemoryFile::next_data(uint64_t offset) const {
  std::optional<Operation> operation;
  PGALLOC_RETURN_IF_ERROR(begin_operation(operation));
  const off_t data = sys().lseek(file_->fd(), static_cast<off_t>(offset), SEEK_DATA);
  if (data < 0) return errno == ENXIO ? kMaxOffset : offset;  // where nobody knows: everything
  return static_cast<uint64_t>(data);
}

Status MemoryFile::build_extent(std::span<const FileRange> parts, bool keep_zeros,
                                ExtentBuilder::Extent& extent) const {
  std::optional<Operation> operation;
  PGALLOC_RETURN_IF_ERROR(begin_operation(operation));
  return ExtentBuilder(*file_, *chunks_, keep_zeros).build(parts, extent);
}

}  // namespace pgalloc
