#include "sharing/lease_table.h"

namespace pgalloc {

Status LeaseTable::add(FileRange range) {
  PGALLOC_RETURN_IF_ERROR(file_->references().begin_lease(range));
  Status status;
  try {
    status = add_lease(range);
  } catch (...) {
    (void)file_->references().end_lease(range);
    throw;
  }
  if (!status.ok()) (void)file_->references().end_lease(range);
  return status;
}

Status LeaseTable::add_lease(FileRange range) {
  if (held_.add(range)) return {};
  return Status::error(ErrorCode::kRefCount, "a peer has leased a page too often");
}

Status LeaseTable::take_out(FileRange range) {
  if (!range.empty() && held_.remove(range, nullptr)) return {};
  return Status::error(ErrorCode::kRefCount, "the peer has no lease on all of these pages");
}

Status LeaseTable::hand_over(FileRange range) {
  PGALLOC_RETURN_IF_ERROR(take_out(range));
  (void)file_->references().end_lease(range);  // fails where it does not matter: closed
  return {};
}

Status LeaseTable::remove(FileRange range) {
  PGALLOC_RETURN_IF_ERROR(take_out(range));
  (void)file_->references().drop_lease(range);  // the same
  return {};
}

Status LeaseTable::copy(const LeaseTable& other) {
  for (auto part = other.held_.set().first(); part.ok(); part = part.next()) {
    PGALLOC_RETURN_IF_ERROR(file_->inc_ref(part.range(), 0));
    if (Status status = add(part.range()); !status.ok()) {
      (void)file_->dec_ref(part.range());
      return status;
    }
  }
  return {};
}

bool LeaseTable::drop_some(size_t ranges_max) {
  for (; ranges_max > 0 && !held_.empty(); --ranges_max) {
    const auto part = held_.set().first();
    const FileRange range = part.range();
    if (!forked()) {
      for (uint32_t i = part.value(); i > 0; --i) (void)file_->references().drop_lease(range);
    }
    held_.forget(range);
  }
  return held_.empty();
}

}  // namespace pgalloc
