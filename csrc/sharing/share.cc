#include "sharing/share.h"

#include <algorithm>
#include <new>

namespace pgalloc {
namespace {

Status not_held() {
  return Status::error(ErrorCode::kRefCount, "the peer has no lease on all of these pages");
}

Status unpinned_already() {
  return Status::error(ErrorCode::kRefCount, "some of these pages are unpinned already");
}

}  // namespace

Share::~Share() {
  try {
    end_some(SIZE_MAX);
  } catch (const std::bad_alloc&) {  // NOLINT: what there is no memory to give back stays in use
  }
}

// The first unpinned range that ends behind the start of `range`.
Share::Unpinned::iterator Share::first_unpinned(FileRange range) {
  auto entry = unpinned_.upper_bound(range.start);
  if (entry != unpinned_.begin() && std::prev(entry)->second->range.end > range.start) --entry;
  return entry;
}

Share::Unpinned::const_iterator Share::unpinned_at(FileRange range) const {
  const auto entry = unpinned_.find(range.start);
  return entry != unpinned_.end() && entry->second->range == range ? entry : unpinned_.end();
}

Status Share::need(FileRange range) const { return need(range, range); }

Status Share::need(FileRange range, FileRange piece) const {
  return table_.has(piece) || unpinned_at(range) != unpinned_.end() ? Status() : not_held();
}

Result<bool> Share::release(FileRange range) {
  if (range.empty()) return not_held();
  // What an honest peer does: it lets go of a handle, which is all that is there.
  if (const auto whole = unpinned_.find(range.start);
      whole != unpinned_.end() && whole->second->range == range && !table_.has(range)) {
    end_entry(whole);
    return true;
  }
  for (auto entry = first_unpinned(range);
       entry != unpinned_.end() && entry->second->range.start < range.end;) {
    if (!pin_entry(entry++)) return false;
  }
  PGALLOC_RETURN_IF_ERROR(table_.remove(range));
  return true;
}

void Share::end_entry(Unpinned::iterator entry) {
  (void)file()->end_handle(*entry->second);  // fails where it does not matter: closed
  unpinned_bytes_ -= entry->second->range.length();
  unpinned_.erase(entry);
}

// What is behind `at` becomes an entry of its own.
void Share::split(Unpinned::iterator entry, uint64_t at) {
  if (at >= entry->second->range.end) return;
  const auto rest = unpinned_.emplace(at, std::make_unique<Entry>()).first;
  rest->second->is_rest = true;
  rest->second->held_queue = entry->second->held_queue;
  file()->discarder().split(*entry->second, *rest->second, at);
}

// And again one with that which follows.
void Share::join(Unpinned::iterator entry) {
  const auto next = std::next(entry);
  if (next == unpinned_.end() || next->second->range.start != entry->second->range.end) return;
  file()->discarder().join(*entry->second, *next->second);
  unpinned_.erase(next);
}

Result<FileRange> Share::release_front(FileRange range, size_t* left) {
  if (range.empty()) return not_held();
  const FileRange nothing{range.start, range.start};
  size_t left_then = *left;
  FileRange front = table_.front(range, &left_then);
  if (const auto whole = unpinned_.find(range.start);
      whole != unpinned_.end() && whole->second->range == range && !table_.has(front)) {
    *left = left_then;
    split(whole, front.end);
    end_entry(whole);
    return front;
  }
  bool pinned = false;
  for (auto entry = first_unpinned(front);
       entry != unpinned_.end() && entry->second->range.start < front.end;
       entry = first_unpinned(front)) {
    if (*left == 0) return nothing;
    split(entry, table_.front(entry->second->range, left).end);
    if (!pin_entry(entry)) return nothing;
    pinned = true;
  }
  if (pinned) {
    if (*left == 0) return nothing;
    front.end = std::min(front.end, table_.front(range, left).end);
  } else {
    *left = left_then;
  }
  PGALLOC_RETURN_IF_ERROR(table_.remove(front));
  return front;
}

Result<FileRange> Share::unpin_front(FileRange range, uint64_t from, size_t* left,
                                     const std::string& payer) {
  if (from == range.start && unpinned_at(range) != unpinned_.end()) return range;
  const FileRange front = table_.front({from, range.end}, left);
  if (front != range && unpinned_at(front) != unpinned_.end()) return unpinned_already();
  PGALLOC_RETURN_IF_ERROR(unpin(front, payer));
  if (from == range.start) return front;
  const auto last = unpinned_.find(front.start);
  if (last != unpinned_.begin()) join(std::prev(last));
  return front;
}

Result<FileRange> Share::pin_front(FileRange range, uint64_t from, size_t* left, bool* intact) {
  *intact = true;
  const FileRange rest{from, range.end};
  const FileRange front = table_.front(rest, left);
  const auto entry = unpinned_.find(from);
  // In the middle of a range that is a lease another one may begin.
  if (entry == unpinned_.end() || entry->second->range != rest ||
      (from > range.start && !entry->second->is_rest)) {
    PGALLOC_RETURN_IF_ERROR(need(range, front));
    return front;
  }
  split(entry, front.end);
  const std::optional<bool> was_intact = pin_entry(entry);
  if (!was_intact) {
    if (front.end < rest.end) join(entry);  // what was split, not the neighbour's
    return FileRange{from, from};
  }
  *intact = *was_intact;
  if (front != rest && !*intact) unpinned_.find(front.end)->second->discarded = true;
  return front;
}

Status Share::unpin(FileRange range, const std::string& payer) {
  if (unpinned_at(range) != unpinned_.end()) return {};
  if (const auto other = first_unpinned(range);
      other != unpinned_.end() && other->second->range.start < range.end) {
    return unpinned_already();
  }
  if (!table_.has(range)) return not_held();
  auto made = std::make_unique<Entry>();
  made->range = range;
  if (!payer.empty()) {
    made->held_queue = file()->discarder().queue_paid_by(payer);
    made->queue = made->held_queue.get();
  }
  const auto entry = unpinned_.emplace(range.start, std::move(made)).first;
  Status status;
  try {
    status = table_.hand_over(range);
  } catch (...) {
    unpinned_.erase(entry);
    throw;
  }
  if (!status.ok()) {
    unpinned_.erase(entry);
    return status;
  }
  unpinned_bytes_ += range.length();
  try {
    return file()->unpin(*entry->second);  // if it is closed, the entry owns pages that stay pinned
  } catch (const std::bad_alloc&) {
    take_back(entry);
    throw;
  }
}

// What could not be unpinned is a lease again; without memory for that, too, it stays an entry.
void Share::take_back(Unpinned::iterator entry) {
  try {
    (void)pin_entry(entry);
  } catch (const std::bad_alloc&) {  // NOLINT: see above
  }
}

std::optional<bool> Share::pin_entry(Unpinned::iterator entry) {
  Discardable& pages = *entry->second;
  if (!file()->discarder().try_pin(pages)) return std::nullopt;
  // If memory runs out here, the entry owns pages that are pinned, until it is asked again.
  if (!table_.add(pages.range).ok()) (void)file()->dec_ref(pages.range);  // closed
  const bool intact = !pages.discarded;
  unpinned_bytes_ -= pages.range.length();
  unpinned_.erase(entry);
  return intact;
}

Result<std::optional<bool>> Share::pin(FileRange range) {
  const auto entry = unpinned_.find(range.start);
  if (entry != unpinned_.end() && entry->second->range == range) return pin_entry(entry);
  PGALLOC_RETURN_IF_ERROR(need(range));
  return std::optional<bool>(true);
}

bool Share::end_some(size_t segments_max) {
  if (table_.forked()) {
    unpinned_bytes_ = 0;
    unpinned_.clear();
  }
  while (segments_max > 0 && !unpinned_.empty()) {
    const auto entry = unpinned_.begin();
    split(entry, table_.front(entry->second->range, &segments_max).end);
    end_entry(entry);
  }
  return unpinned_.empty() && table_.drop_some(segments_max);
}

std::optional<std::string> Share::verify() const {
  uint64_t end = 0;
  uint64_t bytes = 0;
  for (const auto& [start, entry] : unpinned_) {
    if (entry->range.start != start || entry->range.empty()) return "an entry has another's place";
    if (start < end) return "unpinned ranges overlap";
    end = entry->range.end;
    bytes += entry->range.length();
  }
  if (bytes != unpinned_bytes_) return "unpinned bytes are miscounted";
  return std::nullopt;
}

}  // namespace pgalloc
