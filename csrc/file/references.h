// Purpose: who holds the pages: references of handles (section C), references that an image recorded
// and no owner has adopted yet (row J7), and leases of other processes.
//
// Thread safety: any thread.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "file/discarder.h"
#include "file/file_state.h"
#include "file/loader.h"
#include "file/reclaimer.h"

namespace pgalloc {

class References {
 public:
  using Counts = std::vector<std::pair<FileRange, uint32_t>>;

  References(FileState& state, Reclaimer& reclaimer, Discarder& discarder, Loader& loader)
      : state_(state), reclaimer_(reclaimer), discarder_(discarder), loader_(loader) {}
  References(const References&) = delete;
  References& operator=(const References&) = delete;

  // Rows C1 to C5. What inc_ref() adds to is not being discarded.
  Status inc_ref(FileRange range, uint32_t memcg_id) EXCLUDES(file_lock);
  Status dec_ref(FileRange range) EXCLUDES(file_lock);
  Result<bool> has_unique_ref(FileRange range) const EXCLUDES(file_lock);
  Result<std::optional<FileRange>> first_shared(FileRange range) const EXCLUDES(file_lock);
  // A handle ends: what the discarder knows of it is forgotten, and its reference dropped.
  Status end_handle(Discardable& entry) EXCLUDES(file_lock);
  // Pages are not kept any more (see Keeper), and their keeper's reference is dropped.
  Status drop_kept(FileRange range) EXCLUDES(file_lock);

  // One reference on each page of `range` that came from the image has found its owner.
  Status adopt(FileRange range) EXCLUDES(file_lock);
  Counts unadopted() const EXCLUDES(file_lock);
  uint64_t unadopted_bytes() const EXCLUDES(file_lock);  // of pages with such references
  // Drops the references without an owner. The bytes of the pages that had any.
  Result<uint64_t> drop_unadopted() EXCLUDES(file_lock);

  // A reference of the caller on each page becomes a lease of another process, or is one no more.
  Status begin_lease(FileRange range) EXCLUDES(file_lock);
  Status end_lease(FileRange range) EXCLUDES(file_lock);
  // A reference more, which is a lease from the start.
  Status lease_anew(FileRange range) EXCLUDES(file_lock);
  // Ends a lease and drops its reference.
  Status drop_lease(FileRange range) EXCLUDES(file_lock);
  // See PageStates.
  FileRange front(FileRange range, size_t* left) const EXCLUDES(file_lock);
  // For a child that is about to be forked: one lease on each page that has a pinned handle, in
  // *leases with the number of its handles. A std::bad_alloc leaves everything as it was.
  // REQUIRES: the file is not closed.
  void lease_pinned(Counts* leases) REQUIRES(file_lock);
  // Undoes that, but for so many ranges. The handles are still there.
  void undo_leases(const Counts& leases, size_t but) noexcept REQUIRES(file_lock);

 private:
  Status drop_ref(FileRange range) REQUIRES(file_lock) {
    return note_dropped(state_.pages.dec_ref(range));
  }
  Status note_dropped(Result<uint64_t> wasted) REQUIRES(file_lock);

  FileState& state_;
  Reclaimer& reclaimer_;
  Discarder& discarder_;
  Loader& loader_;
};

}  // namespace pgalloc
