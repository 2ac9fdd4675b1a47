// Purpose: finds, marks and prepares pages for new allocations (section B).
//
// Thread safety: any thread.
//
// Searching and marking are one step under the lock (row B19); committing, populating and zeroing
// happen afterwards without it, while no other thread knows the range yet.
//
// A huge allocation lies in huge areas. Its whole huge pages are committed by touching them through the
// mapping: fallocate() knows nothing of its advice. Where it ends inside a huge page, that one is advised
// against, so that no byte beyond the end is committed. Without a place there, or where huge pages cannot
// be had, it is an allocation like others; both are counted (huge_fallback_bytes).
#pragma once

#include "backing/backing_file.h"
#include "backing/chunk_map.h"
#include "backing/huge_switch.h"
#include "file/file_state.h"
#include "file/options.h"
#include "file/reclaimer.h"
#include "file/references.h"
#include "pages/placement.h"

namespace pgalloc {

class Allocator {
 public:
  Allocator(FileState& state, BackingFile& file, ChunkMap& chunks, Reclaimer& reclaimer,
            References& references, const MemoryFileOptions& options)
      : state_(state),
        file_(file),
        chunks_(chunks),
        reclaimer_(reclaimer),
        references_(references),
        capacity_(chunks.capacity()),
        manual_zeroing_(options.manual_zeroing),
        huge_pages_(file.in_memory() && !file.needs_blocks() && !options.manual_zeroing
                        ? options.huge_pages
                        : HugePages::kNever),
        kernel_gives_huge_pages_(huge_pages_ != HugePages::kNever && huge_switch_of_shmem().gives),
        bytes_max_(options.max_allocatable_bytes.value_or(UINT64_MAX)) {}
  Allocator(const Allocator&) = delete;
  Allocator& operator=(const Allocator&) = delete;

  // With may_wait false, a request that would have to wait for the reclaimer before it is refused
  // fails with kOutOfMemory and sets *must_wait. For blocks of a full file system it waits all the same,
  // but not long.
  Result<FileRange> allocate(const AllocateRequest& request, bool may_wait,
                             bool* must_wait = nullptr) EXCLUDES(file_lock);
  // Whether there may be areas for huge pages.
  bool may_use_huge_pages() const { return huge_pages_ != HugePages::kNever; }
  // Whether that takes a system call for the pages, but for growing the file.
  bool prepares(const AllocateRequest& request) const {
    return request.mode != AllocationMode::kAllocateOnly || manual_zeroing_ ||
           file_.needs_blocks() || page_size_for(request) == PageSize::kHuge;
  }

 private:
  // What a range is, before anything was done with it.
  struct Found {
    PageSize size = PageSize::kSmall;
    bool recycled = false;  // it comes with what was there
  };

  Result<FileRange> reserve(const AllocateRequest& request, bool may_wait, bool* must_wait,
                            Found* found) EXCLUDES(file_lock);
  PageSize page_size_for(const AllocateRequest& request) const;
  // Every page will be written at once: so what was freed serves as well, zeroed if it has to be.
  // On a disk, committed pages need blocks only, and zeros would be written there.
  bool may_recycle(const AllocateRequest& request) const {
    return request.will_be_overwritten ||
           request.mode == AllocationMode::kAllocateAndWritePopulate ||
           (request.mode == AllocationMode::kAllocateAndCommit && file_.in_memory());
  }
  std::optional<FileRange> recycle(const AllocateRequest& request, PageSize size)
      REQUIRES(file_lock);
  Result<FileRange> place(const AllocateRequest& request, PageSize* size) REQUIRES(file_lock);
  std::optional<Place> find(const AllocateRequest& request, uint64_t capacity, PageSize size)
      REQUIRES(file_lock);
  void change_areas(const Place& place) REQUIRES(file_lock);
  void count(const AllocateRequest& request, PageSize size) REQUIRES(file_lock);
  void advise(FileRange range);
  void count_small_pages(FileRange range) EXCLUDES(file_lock);
  Status prepare(const AllocateRequest& request, FileRange range, Found found, bool may_wait)
      EXCLUDES(file_lock);
  Status take_blocks(const AllocateRequest& request, FileRange range, bool may_wait)
      EXCLUDES(file_lock);
  Result<bool> reserve_blocks(FileRange range, bool may_wait) EXCLUDES(file_lock);

  FileState& state_;
  BackingFile& file_;
  ChunkMap& chunks_;
  Reclaimer& reclaimer_;
  References& references_;
  const uint64_t capacity_;  // chunks_ may be gone once the file is closed
  const bool manual_zeroing_;
  const HugePages huge_pages_;
  const bool kernel_gives_huge_pages_;  // when the file was made
  const uint64_t bytes_max_;
};

}  // namespace pgalloc
