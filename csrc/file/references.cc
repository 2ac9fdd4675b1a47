#include "file/references.h"

#include <new>
#include <utility>

namespace pgalloc {

Status References::inc_ref(FileRange range, uint32_t memcg_id) {
  FileLock lock(state_);
  discarder_.wait_for_discards(range);
  PGALLOC_RETURN_IF_ERROR(state_.check_open());
  return state_.pages.inc_ref(range, memcg_id);
}

Status References::dec_ref(FileRange range) {
  FileLock lock(state_);
  PGALLOC_RETURN_IF_ERROR(state_.check_open());
  return drop_ref(range);
}

Status References::end_handle(Discardable& entry) {
  FileLock lock(state_);
  discarder_.forget_locked(entry);
  PGALLOC_RETURN_IF_ERROR(state_.check_open());
  return drop_ref(entry.range);
}

Status References::drop_kept(FileRange range) {
  FileLock lock(state_);
  discarder_.wait_for_discards(range);
  PGALLOC_RETURN_IF_ERROR(state_.check_open());
  return note_dropped(state_.pages.drop_kept(range));
}

Status References::note_dropped(Result<uint64_t> wasted) {
  if (!wasted.ok()) return std::move(wasted).status();
  if (*wasted > 0) {
    reclaimer_.freed(*wasted);
    if (state_.incomplete()) loader_.pending_changed();
  }
  return {};
}

Result<std::optional<FileRange>> References::first_shared(FileRange range) const {
  FileLock lock(state_);
  PGALLOC_RETURN_IF_ERROR(state_.check_open());
  return state_.pages.first_shared(range);
}

Result<bool> References::has_unique_ref(FileRange range) const {
  FileLock lock(state_);
  PGALLOC_RETURN_IF_ERROR(state_.check_open());
  return state_.pages.has_unique_ref(range);
}

// --- After a restore -----------------------------------------------------------------------------

Status References::adopt(FileRange range) {
  FileLock lock(state_);
  PGALLOC_RETURN_IF_ERROR(state_.check_open());
  return state_.pages.adopt(range);
}

References::Counts References::unadopted() const {
  FileLock lock(state_);
  return state_.pages.unadopted().set().export_segments();
}

uint64_t References::unadopted_bytes() const {
  FileLock lock(state_);
  return state_.pages.unadopted().set().span();
}

Result<uint64_t> References::drop_unadopted() {
  FileLock lock(state_);
  PGALLOC_RETURN_IF_ERROR(state_.check_open());
  const uint64_t bytes = state_.pages.unadopted().set().span();
  reclaimer_.freed(state_.pages.drop_unadopted());
  if (state_.incomplete()) loader_.pending_changed();
  return bytes;
}

// --- Leases --------------------------------------------------------------------------------------

Status References::begin_lease(FileRange range) {
  FileLock lock(state_);
  PGALLOC_RETURN_IF_ERROR(state_.check_open());
  return state_.pages.begin_lease(range);
}

Status References::lease_anew(FileRange range) {
  PGALLOC_RETURN_IF_ERROR(inc_ref(range, 0));
  Status status;
  try {
    status = begin_lease(range);
  } catch (...) {
    (void)dec_ref(range);
    throw;
  }
  if (!status.ok()) (void)dec_ref(range);
  return status;
}

Status References::end_lease(FileRange range) {
  FileLock lock(state_);
  PGALLOC_RETURN_IF_ERROR(state_.check_open());
  return state_.pages.end_lease(range);
}

Status References::drop_lease(FileRange range) {
  FileLock lock(state_);
  PGALLOC_RETURN_IF_ERROR(state_.check_open());
  PGALLOC_RETURN_IF_ERROR(state_.pages.end_lease(range));
  return drop_ref(range);
}

FileRange References::front(FileRange range, size_t* left) const {
  FileLock lock(state_);
  return state_.pages.front(range, left);
}

void References::lease_pinned(Counts* leases) {
  Counts pinned = state_.pages.pinned();
  size_t leased = 0;
  try {
    for (const auto& [range, handles] : pinned) {
      PGALLOC_CHECK(state_.pages.inc_ref(range, 0).ok());
      try {
        PGALLOC_CHECK(state_.pages.begin_lease(range).ok());
      } catch (...) {
        PGALLOC_CHECK(state_.pages.dec_ref(range).ok());
        throw;
      }
      ++leased;
    }
  } catch (...) {
    pinned.resize(leased);
    undo_leases(pinned, 0);
    throw;
  }
  *leases = std::move(pinned);
}

void References::undo_leases(const Counts& leases, size_t but) noexcept try {
  for (; but < leases.size(); ++but) {
    PGALLOC_CHECK(state_.pages.end_lease(leases[but].first).ok());
    PGALLOC_CHECK(state_.pages.dec_ref(leases[but].first).ok());
  }
} catch (const std::bad_alloc&) {  // NOLINT: what there is no memory to give back stays in use
}

}  // namespace pgalloc
