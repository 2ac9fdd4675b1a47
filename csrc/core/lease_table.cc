#include "core/lease_table.h"

namespace pgalloc {

Status LeaseTable::add(FileRange range) {
  if (held_.add(range)) return {};
  return Status::error(ErrorCode::kRefCount, "a peer has leased a page too often");
}

Status LeaseTable::hand_over(FileRange range) {
  if (!range.empty() && held_.remove(range, nullptr)) return {};
  return Status::error(ErrorCode::kRefCount, "the peer has no lease on all of these pages");
}

Status LeaseTable::remove(FileRange range) {
  PGALLOC_RETURN_IF_ERROR(hand_over(range));
  (void)file_->dec_ref(range);  // fails where it does not matter: closed, or forked
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

void LeaseTable::drop_all() {
  CountedPages dropped;
  dropped.swap(held_);
  for (auto part = dropped.set().first(); part.ok(); part = part.next()) {
    for (uint32_t i = 0; i < part.value(); ++i) (void)file_->dec_ref(part.range());
  }
}

}  // namespace pgalloc
