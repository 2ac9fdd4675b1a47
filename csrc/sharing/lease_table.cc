#include "sharing/lease_table.h"

#include <algorithm>
#include <new>

#include "segment/front.h"

namespace pgalloc {

LeaseTable::~LeaseTable() {
  try {
    drop_some(SIZE_MAX);
  } catch (const std::bad_alloc&) {  // NOLINT: see above
  }
}

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

// One lease on each page leaves the table, and `call` ends it.
Status LeaseTable::give(FileRange range, Status (References::*call)(FileRange)) {
  if (range.empty() || !held_.remove(range, nullptr)) {
    return Status::error(ErrorCode::kRefCount, "the peer has no lease on all of these pages");
  }
  try {
    (void)(file_->references().*call)(range);  // fails where it does not matter: closed
  } catch (...) {
    held_.add(range);
    throw;
  }
  return {};
}

Status LeaseTable::hand_over(FileRange range) { return give(range, &References::end_lease); }

Status LeaseTable::remove(FileRange range) { return give(range, &References::drop_lease); }

FileRange LeaseTable::front(FileRange range, size_t* left) const {
  const size_t most = std::max<size_t>(*left, 1);
  const size_t count = segment::cut(held_.set(), most, &range);
  size_t left_there = *left;
  range = file_->references().front(range, &left_there);
  *left = std::min(left_there, *left - std::min(*left, count));
  return range;
}

Result<bool> LeaseTable::copy_some(const LeaseTable& other, uint64_t* from, size_t* left) {
  for (;;) {
    const auto part = other.held_.set().lower_bound_segment(*from);
    if (!part.ok()) return true;
    if (*left == 0) return false;
    const FileRange range =
        other.front({std::max(part.range().start, *from), part.range().end}, left);
    PGALLOC_RETURN_IF_ERROR(file_->references().lease_anew(range));
    Status status;
    try {
      status = add_lease(range);
    } catch (...) {
      (void)file_->references().drop_lease(range);
      throw;
    }
    if (!status.ok()) {
      (void)file_->references().drop_lease(range);
      return status;
    }
    *from = range.end;
  }
}

bool LeaseTable::drop_some(size_t count_max) {
  if (forked()) held_.clear();
  while (count_max > 0 && !held_.empty()) {
    (void)remove(front(held_.set().first().range(), &count_max));
  }
  return held_.empty();
}

}  // namespace pgalloc
