#include "file/allocator.h"

#include <errno.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <new>
#include <string>
#include <vector>

#include "backing/commit_probe.h"
#include "backing/pagemap.h"
#include "backing/prefault.h"
#include "base/reserve.h"
#include "file/operation.h"
#include "guard/commit_gate.h"

namespace pgalloc {
namespace {

// How long blocks of freed pages are waited for, once; and where others wait meanwhile.
constexpr std::chrono::milliseconds kBlocksWait{1000};
constexpr std::chrono::milliseconds kBlocksWaitBrief{100};

Status out_of_memory(const AllocateRequest& request, const char* why) {
  return Status::error(ErrorCode::kOutOfMemory,
                       "cannot allocate " + std::to_string(request.length) + " bytes: " + why);
}

std::string not_whole_pages(uint64_t length) {
  std::string text = "length must be a positive number of whole pages of " +
                     std::to_string(page_size()) + " bytes, not " + std::to_string(length);
  const uint64_t fits = length == 0 ? page_size() : align_up(length, page_size());
  return fits > length ? text + ": " + std::to_string(fits) + " would be" : text;
}

// Of fewer recycled pages it is not asked which are committed: room is made for all of them.
constexpr uint64_t kCountedMin = uint64_t{256} << 10;

// What is committed counts as used; and so does what is reserved. So that a large range does not count
// twice for a moment, and costs others their memory, it is committed in pieces.
constexpr uint64_t kCommittedAtOnce = uint64_t{16} << 20;

template <class Commit>
Status in_pieces(FileRange range, CommitReservation& reservation, Commit commit) {
  while (!range.empty()) {
    const uint64_t length = std::min(range.length(), std::max(kCommittedAtOnce, huge_page_size()));
    PGALLOC_RETURN_IF_ERROR(commit(FileRange{range.start, range.start + length}));
    reservation.settle(length);
    range.start += length;
  }
  return {};
}

}  // namespace

Result<FileRange> Allocator::allocate(const AllocateRequest& request, bool may_wait,
                                      bool* must_wait) {
  if (request.length == 0 || !is_aligned(request.length, page_size())) {
    return Status::error(ErrorCode::kRange, not_whole_pages(request.length));
  }
  Found found;
  Result<FileRange> range = reserve(request, may_wait, must_wait, &found);
  if (!range.ok()) return range;
  if (prepares(request)) {
    try {
      Status status = prepare(request, *range, found, may_wait);
      if (!status.ok()) {
        // A concurrent close() has released the pages already.
        (void)references_.dec_ref(*range);
        return status;
      }
    } catch (const std::bad_alloc&) {
      with_reserve([&] { (void)references_.dec_ref(*range); });
      throw;
    }
  }
  if (may_recycle(request)) {
    FileLock lock(state_);
    reclaimer_.asked(request.length);
  }
  return range;
}

Result<FileRange> Allocator::reserve(const AllocateRequest& request, bool may_wait, bool* must_wait,
                                     Found* found) {
  if (request.length > capacity_) return out_of_memory(request, "more than the capacity");
  if (request.length > bytes_max_) return out_of_memory(request, "more than max_allocatable_bytes");

  FileLock lock(state_);
  while (true) {
    PGALLOC_RETURN_IF_ERROR(state_.check_open());
    found->size = page_size_for(request);
    if (may_recycle(request)) {
      if (const auto range = recycle(request, found->size)) {
        found->recycled = true;
        return *range;
      }
    }
    const bool over_maximum = state_.pages.allocated_bytes() > bytes_max_ - request.length;
    Result<FileRange> range = over_maximum
                                  ? out_of_memory(request, "max_allocatable_bytes is reached")
                                  : place(request, &found->size);
    // A file may be at the limit of its length (ulimit -f).
    const bool is_full = !range.ok() && (range.status().code() == ErrorCode::kOutOfMemory ||
                                         range.status().error_number() == EFBIG);
    if (!is_full || !reclaimer_.pending()) return range;
    // Memory that is on its way out counts against the limits until it is gone: wait for it.
    if (!may_wait) {
      *must_wait = true;
      return range;
    }
    reclaimer_.wait_for_progress();
  }
}

PageSize Allocator::page_size_for(const AllocateRequest& request) const {
  if (huge_pages_ == HugePages::kNever || request.length < huge_page_size())
    return PageSize::kSmall;
  const bool asks = request.huge == HugeWish::kAsked || huge_pages_ == HugePages::kAlways ||
                    (request.huge == HugeWish::kIfUseful && kernel_gives_huge_pages_);
  return asks ? PageSize::kHuge : PageSize::kSmall;
}

std::optional<FileRange> Allocator::recycle(const AllocateRequest& request, PageSize size) {
  const auto range = state_.pages.recycle(request.length, default_alignment(request.length),
                                          request.direction, size, request.kind, request.memcg_id);
  if (!range) return std::nullopt;
  reclaimer_.waste_was_recycled();
  state_.changes.note(*range);
  count(request, size);
  state_.stats.recycled_bytes += request.length;
  return range;
}

Result<FileRange> Allocator::place(const AllocateRequest& request, PageSize* size) {
  auto found = find(request, capacity_, *size);
  if (found && found->file_size > file_.size()) {
    if (Status grown = file_.grow(found->file_size); !grown.ok()) {
      // A limit on the size of files (ulimit -f) is a smaller capacity.
      const std::optional<uint64_t> limit = BackingFile::size_limit();
      if (grown.error_number() != EFBIG || !limit || *limit >= capacity_) return grown;
      found = find(request, *limit, *size);
      if (!found) return grown;
      if (found->file_size > file_.size()) PGALLOC_RETURN_IF_ERROR(file_.grow(found->file_size));
    }
  }
  if (!found) return out_of_memory(request, "no free range below the capacity is long enough");
  if (*size == PageSize::kHuge && found->size == PageSize::kSmall) {
    state_.stats.huge_fallback_bytes += align_down(request.length, huge_page_size());
  }
  *size = found->size;
  change_areas(*found);
  state_.pages.mark_used(*found, request.kind, request.memcg_id);
  reclaimer_.used_more();
  state_.changes.count();
  count(request, found->size);
  return found->range;
}

void Allocator::count(const AllocateRequest& request, PageSize size) {
  ++state_.stats.allocations;
  state_.stats.allocated_bytes += request.length;
  if (size == PageSize::kHuge) ++state_.stats.huge_allocations;
}

std::optional<Place> Allocator::find(const AllocateRequest& request, uint64_t capacity,
                                     PageSize size) {
  const PlacementRequest wanted{.length = request.length,
                                .alignment = default_alignment(request.length),
                                .direction = request.direction,
                                .file_size = file_.size(),
                                .capacity = capacity};
  if (size == PageSize::kHuge) {
    if (auto place = state_.pages.find_place(size, wanted)) return place;
  }
  return state_.pages.find_place(PageSize::kSmall, wanted);
}

// Under the lock, so that none touches pages there before the kernel is told.
void Allocator::change_areas(const Place& place) {
  const Areas& areas = state_.pages.areas();
  if (!areas.has_huge() && place.size == PageSize::kSmall) return;
  // Others in them may have huge pages that are advised against: those that change, and no more.
  std::vector<FileRange> changing;
  areas.visit(areas.around(place.range), [&](FileRange part, PageSize size) {
    if (size != place.size) changing.push_back(part);
  });
  if (changing.empty()) return;
  state_.pages.set_areas(place.range, place.size);
  for (const FileRange& part : changing) chunks_.advise(part, place.size == PageSize::kHuge);
}

// Its huge pages may have been split, or advised against, when they were others'.
void Allocator::advise(FileRange range) {
  const FileRange whole{range.start, align_down(range.end, huge_page_size())};
  chunks_.advise(whole, /*huge=*/true);
  if (whole.end == range.end) return;
  chunks_.advise({whole.end, whole.end + huge_page_size()}, /*huge=*/false);
}

Status Allocator::prepare(const AllocateRequest& request, FileRange range, Found found,
                          bool may_wait) {
  const bool recycled = found.recycled;
  const bool huge = found.size == PageSize::kHuge;
  std::optional<Operation> operation;
  PGALLOC_RETURN_IF_ERROR(Operation::begin(state_, operation));
  if (huge) advise(range);
  CommitReservation reservation;
  const bool in_memory_blocks = file_.needs_blocks() && file_.in_memory();
  if (in_memory_blocks || manual_zeroing_ || request.mode != AllocationMode::kAllocateOnly) {
    // Of freed pages, some may never have been touched.
    const bool asks = recycled && range.length() > kCountedMin;
    const uint64_t there = asks ? CommitProbe(file_, chunks_).count_written(range) : 0;
    if (there < range.length()) {
      PGALLOC_RETURN_IF_ERROR(commit_gate().reserve(range.length() - there, reservation));
    }
  }
  // No other thread knows the range yet, so doing this after marking it is the same as before (B18).
  if (manual_zeroing_ && !recycled) PGALLOC_RETURN_IF_ERROR(file_.write_zeros(range));
  if (file_.needs_blocks()) {
    PGALLOC_RETURN_IF_ERROR(take_blocks(request, range, may_wait));
  } else if (request.mode == AllocationMode::kAllocateAndCommit && !huge && !recycled) {
    return in_pieces(range, reservation, [&](FileRange piece) { return file_.commit(piece); });
  }
  if (request.mode == AllocationMode::kAllocateOnly) return {};
  if (!chunks_.is_mapped(range)) PGALLOC_RETURN_IF_ERROR(file_.map(chunks_, range));
  if (recycled) {
    clear_memory(chunks_.address(range.start), range.length());
    return {};
  }
  if (huge) {
    bool touched = true;
    PGALLOC_RETURN_IF_ERROR(in_pieces(range, reservation, [&](FileRange piece) {
      Status status = commit_by_touch(chunks_.address(piece.start), piece.length());
      touched = touched && status.ok();
      return request.mode == AllocationMode::kAllocateAndCommit ? std::move(status) : Status();
    }));
    if (touched) count_small_pages(range);
    return {};
  }
  return in_pieces(range, reservation, [&](FileRange piece) {
    prefault(chunks_.address(piece.start), piece.length());
    return Status();
  });
}

// Of a huge range that was touched just now, the huge pages that the kernel had none for. The question takes
// about 4 us, a huge page to be touched 75.
void Allocator::count_small_pages(FileRange range) {
  const FileRange whole{range.start, align_down(range.end, huge_page_size())};
  std::array<os::PageRegion, 64> buffer;
  uint64_t huge = 0;
  const bool known = Pagemap(chunks_).visit(whole, os::kPageIsPresent | os::kPageIsHuge, buffer,
                                            [&](FileRange run) { huge += run.length(); });
  if (!known || huge == whole.length()) return;
  FileLock lock(state_);
  state_.stats.huge_fallback_bytes += whole.length() - huge;
}

// On disk what is reserved is stored, and no later look would tell: see CommitProbe.
Status Allocator::take_blocks(const AllocateRequest& request, FileRange range, bool may_wait) {
  const Result<bool> reserved = reserve_blocks(range, may_wait);
  if (!reserved.ok()) return reserved.status().clone();
  if (!*reserved) {
    return request.mode == AllocationMode::kAllocateAndCommit
               ? Status::system_error(EOPNOTSUPP, "fallocate")
               : Status();
  }
  if (file_.in_memory()) return {};
  FileLock lock(state_);
  state_.pages.mark_committed(range, nullptr);
  return {};
}

// What was freed has its blocks until it is punched: a file system that is full only of that is not.
Result<bool> Allocator::reserve_blocks(FileRange range, bool may_wait) {
  uint64_t punches = 0;
  {
    FileLock lock(state_);
    punches = state_.stats.punches;
  }
  Result<bool> reserved = file_.need_blocks(range);
  const int error = reserved.ok() ? 0 : reserved.status().error_number();
  if (error != ENOSPC && error != EDQUOT) return reserved;
  {
    FileLock lock(state_);
    if (state_.stats.punches == punches && !reclaimer_.pending()) return reserved;
    const auto patience = may_wait ? kBlocksWait : kBlocksWaitBrief;
    (void)reclaimer_.wait_until_done(std::chrono::steady_clock::now() + patience);
  }
  return file_.need_blocks(range);
}

}  // namespace pgalloc
