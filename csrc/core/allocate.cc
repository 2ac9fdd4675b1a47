// Section B: finding, marking and preparing pages.
#include <string>

#include "core/guard.h"
#include "core/memory_file.h"
#include "core/operation.h"
#include "core/prefault.h"

namespace pgalloc {
namespace {

Status out_of_memory(const AllocateRequest& request, const char* why) {
  return Status::error(ErrorCode::kOutOfMemory,
                       "cannot allocate " + std::to_string(request.length) + " bytes: " + why);
}

}  // namespace

Result<FileRange> MemoryFile::allocate(const AllocateRequest& request, bool may_wait,
                                       bool* must_wait) {
  if (forked()) return check_open();
  if (request.length == 0 || !is_aligned(request.length, page_size())) {
    return Status::error(
        ErrorCode::kRange,
        "length must be a positive number of whole pages, not " + std::to_string(request.length));
  }
  bool recycled = false;
  Result<FileRange> range = reserve(request, may_wait, must_wait, &recycled);
  if (!range.ok()) return range;
  if (request.mode != AllocationMode::kAllocateOnly || options_.manual_zeroing) {
    if (Status status = prepare(request, *range, recycled); !status.ok()) {
      // A concurrent close() has released the pages already.
      (void)dec_ref(*range);
      return status;
    }
  }
  return range;
}

bool MemoryFile::reclaim_pending() const {
  const bool takes_more = reclaimer_runs_ && reclaimer_pauses_ == 0 && pages_.waste_bytes() > 0;
  return takes_more || pages_.releasing_bytes() > 0;
}

Result<FileRange> MemoryFile::reserve(const AllocateRequest& request, bool may_wait,
                                      bool* must_wait, bool* recycled) {
  if (request.length > capacity()) return out_of_memory(request, "more than the capacity");
  const uint64_t maximum = options_.max_allocatable_bytes.value_or(UINT64_MAX);
  if (request.length > maximum) return out_of_memory(request, "more than max_allocatable_bytes");

  MutexLock lock(mu_);
  while (true) {
    if (closed()) return check_open();
    if (request.mode == AllocationMode::kAllocateAndWritePopulate || request.will_be_overwritten) {
      const auto reused = pages_.recycle(request.length, default_alignment(request.length),
                                         request.direction, request.kind, request.memcg_id);
      if (reused) {
        *recycled = true;
        disturb(*reused);
        ++changes_;
        ++stats_.allocations;
        stats_.allocated_bytes += request.length;
        stats_.recycled_bytes += request.length;
        return *reused;
      }
    }
    const bool over_maximum = pages_.allocated_bytes() > maximum - request.length;
    Result<FileRange> range =
        over_maximum ? out_of_memory(request, "max_allocatable_bytes is reached") : place(request);
    if (range.ok() || range.status().code() != ErrorCode::kOutOfMemory || !reclaim_pending()) {
      return range;
    }
    // Memory that is on its way out counts against the limits until it is gone: wait for it.
    if (!may_wait) {
      *must_wait = true;
      return range;
    }
    ++reclaim_waiters_;
    reclaimer_work_.notify_all();
    waste_shrank_.wait(mu_);
    --reclaim_waiters_;
  }
}

Result<FileRange> MemoryFile::place(const AllocateRequest& request) {
  const auto found = find_place(pages_.usage(), {.length = request.length,
                                                 .alignment = default_alignment(request.length),
                                                 .direction = request.direction,
                                                 .file_size = file_->size(),
                                                 .capacity = capacity()});
  if (!found) return out_of_memory(request, "no free range below the capacity is long enough");
  if (found->file_size > file_->size()) PGALLOC_RETURN_IF_ERROR(file_->grow(found->file_size));
  pages_.mark_used(*found, request.kind, request.memcg_id);
  ++changes_;
  ++stats_.allocations;
  stats_.allocated_bytes += request.length;
  return found->range;
}

Status MemoryFile::prepare(const AllocateRequest& request, FileRange range, bool recycled) {
  std::optional<Operation> operation;
  PGALLOC_RETURN_IF_ERROR(begin_operation(operation));
  // Nobody else knows the range yet, so doing this after marking it is the same as before (B18).
  if (options_.manual_zeroing && !recycled) PGALLOC_RETURN_IF_ERROR(file_->write_zeros(range));

  Guard::Room room;
  if (request.mode != AllocationMode::kAllocateOnly && !recycled) {
    PGALLOC_RETURN_IF_ERROR(Guard::instance().make_room(range.length(), room));
  }
  if (request.mode == AllocationMode::kAllocateAndCommit) return file_->commit(range);
  if (request.mode == AllocationMode::kAllocateAndWritePopulate) {
    Result<char*> address = map(range);
    if (!address.ok()) return std::move(address).status();
    if (recycled) {
      clear_memory(*address, range.length());
    } else {
      prefault(*address, range.length());
    }
  }
  return {};
}

}  // namespace pgalloc
