#include "pages/page_states.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <new>

#include "base/reserve.h"
#include "segment/front.h"

namespace pgalloc {
namespace {

std::string text(FileRange range) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, "[%#" PRIx64 ", %#" PRIx64 ")", range.start, range.end);
  return buffer;
}

Status range_error(FileRange range, const char* what) {
  return Status::error(ErrorCode::kRange, text(range) + " " + what);
}

Status check_shape(FileRange range) {
  if (range.empty()) return range_error(range, "is empty");
  if (!is_aligned(range.start, page_size()) || !is_aligned(range.end, page_size())) {
    return range_error(range, "is not page-aligned");
  }
  return {};
}

// The first of the referenced segments that together cover all of `range`; not ok() if none do, or
// if `accept` refuses one of them.
template <class Accept>
UsageSet::Iterator find_used(const UsageSet& usage, FileRange range, Accept accept) {
  const UsageSet::Iterator first = usage.find(range.start);
  uint64_t reached = range.start;
  for (auto segment = first; segment.ok(); segment = segment.next()) {
    if (segment.start() > reached || segment.value().refs == 0) break;
    if (!accept(segment.value())) break;
    reached = segment.end();
    if (reached >= range.end) return first;
  }
  return {};
}

constexpr auto kAny = [](const PageUse&) { return true; };

// What a huge allocation leaves of its last huge page.
FileRange tail_of(FileRange range, PageSize size) {
  return {range.end, size == PageSize::kHuge ? align_up(range.end, huge_page_size()) : range.end};
}

// Calls visit(part, count) for the parts of `range`, in order; 0 where the set has nothing.
template <class Set, class CountOf, class Visit>
void visit_counts(const Set& set, FileRange range, CountOf count_of, Visit visit) {
  uint64_t from = range.start;
  set.visit_range(range, [&](FileRange part, const auto& value) {
    if (from < part.start) visit(FileRange{from, part.start}, 0u);
    visit(part, count_of(value));
    from = part.end;
  });
  if (from < range.end) visit(FileRange{from, range.end}, 0u);
}

constexpr auto kCount = [](const uint32_t& count) { return count; };
constexpr auto kHandles = [](const UnpinnedTraits::Value& value) { return value.handles; };

}  // namespace

void PageStates::book(uint64_t bytes, const PageUse& use) {
  PGALLOC_CHECK(ledger_.inc(bytes, use.kind, use.memcg_id).ok());
  known_committed_bytes_ += bytes;
}

void PageStates::unbook(uint64_t bytes, const PageUse& use) {
  PGALLOC_CHECK(ledger_.dec(bytes, use.kind, use.memcg_id).ok());
  known_committed_bytes_ -= bytes;
}

void PageStates::mark_used(const Place& place, MemoryKind kind, uint32_t memcg_id) {
  const PageUse use{1, memcg_id, kind, false};
  const FileRange tail = tail_of(place.range, place.size);
  if (tail.empty()) {
    usage_.insert_at(place.gap, place.range, use);
  } else {
    mark_used_before(tail, place.range, use);
  }
  used_bytes_ += place.range.length();
}

void PageStates::mark_used_before(FileRange tail, FileRange range, const PageUse& use) {
  usage_.insert(tail, PageUse{});
  try {
    waste_.add_subreleased(tail);
    usage_.insert(range, use);
  } catch (const std::bad_alloc&) {
    waste_.forget(tail);
    usage_.remove_range(tail);
    throw;
  }
}

std::optional<FileRange> PageStates::recycle(uint64_t length, uint64_t alignment,
                                             Direction direction, PageSize size, MemoryKind kind,
                                             uint32_t memcg_id) {
  const bool from_below = direction == Direction::kBottomUp;
  const uint64_t whole = size == PageSize::kHuge ? align_up(length, huge_page_size()) : length;
  const auto place = waste_.find(whole, alignment, from_below, size, pending_);
  if (!place) return std::nullopt;
  const FileRange range{place->start, place->start + length};
  with_reserve([&] { waste_.remove(*place); });
  // What it ends in has been touched: it is given back as a part.
  if (range.end < place->end) with_reserve([&] { waste_.add({range.end, place->end}); });
  with_reserve([&] {
    usage_.mutate_range(range, [&](FileRange part, PageUse& use) {
      const PageUse before = use;
      use = PageUse{1, memcg_id, kind, before.committed};
      if (!before.committed) return;
      unbook(part.length(), before);
      book(part.length(), use);
    });
  });
  used_bytes_ += length;
  return range;
}

template <class Change>
void PageStates::change_used(UsageSet::Iterator first, FileRange range, Change change) {
  if (range.end <= first.end()) {
    usage_.mutate_within(first, range, change);
  } else {
    usage_.mutate_range(range, change);
  }
}

Status PageStates::unused_error(FileRange range) const {
  // A page at 0 references awaits the reclaimer: it must not come back to life.
  bool dead = false;
  usage_.visit_range(range, [&](FileRange, const PageUse& use) { dead = dead || use.refs == 0; });
  if (dead) return Status::error(ErrorCode::kRefCount, text(range) + " has pages at 0 references");
  return range_error(range, "is not allocated, or only in part");
}

Status PageStates::check_used(FileRange range) const {
  PGALLOC_RETURN_IF_ERROR(check_shape(range));
  if (!find_used(usage_, range, kAny).ok()) {
    return range_error(range, "is not allocated, or only in part");
  }
  return {};
}

Status PageStates::inc_ref(FileRange range, uint32_t memcg_id) {
  PGALLOC_RETURN_IF_ERROR(check_shape(range));
  bool saturated = false;
  const auto first = find_used(usage_, range, [&](const PageUse& use) {
    saturated = saturated || use.refs == UINT32_MAX;
    return true;
  });
  if (!first.ok()) return unused_error(range);
  if (saturated) {
    return Status::error(ErrorCode::kRefCount, text(range) + " has pages at 2^32-1 references");
  }
  change_used(first, range, [&](FileRange part, PageUse& use) {
    ++use.refs;
    if (memcg_id == 0 || use.memcg_id != 0) return;
    const PageUse before = use;
    use.memcg_id = memcg_id;
    if (!use.committed) return;
    unbook(part.length(), before);
    book(part.length(), use);
  });
  return {};
}

Result<uint64_t> PageStates::dec_ref(FileRange range) {
  PGALLOC_RETURN_IF_ERROR(check_shape(range));
  const auto first = find_used(usage_, range, kAny);
  if (!first.ok()) return unused_error(range);
  return drop_refs(first, range, 1);
}

// Fetches the memory that drop_refs() needs, so that it drops all references or none. One part needs none of it: to
// make it waste is the first step, and fails without effect.
void PageStates::reserve_to_drop(UsageSet::Iterator first, FileRange range, uint32_t count) {
  const bool is_plain = unadopted_.empty() && leased_.empty() && kept_.empty() &&
                        pending_.empty() && unpinned_.empty();
  if (is_plain && range.end <= first.end()) return;
  size_t parts = 0, wasted = 0, unadopted = 0, leased = 0, kept = 0;
  for (auto segment = first; segment.ok() && segment.start() < range.end;
       segment = segment.next()) {
    const FileRange part = segment.range().intersect(range);
    const uint32_t left = segment.value().refs - count;
    ++parts;
    if (left == 0) ++wasted;
    if (unadopted_.exceeds(part, left)) ++unadopted;
    if (leased_.exceeds(part, left)) ++leased;
    if (kept_.exceeds(part, left)) ++kept;
  }
  if (parts > 1 && wasted > 0) waste_.reserve(range, wasted);
  if (unadopted > 0) unadopted_.reserve(unadopted);
  if (leased > 0) leased_.reserve(leased);
  if (kept > 0) kept_.reserve(kept);
  if (wasted == 0) return;
  if (!pending_.empty() && !pending_.set().is_empty_range(range)) pending_.reserve(wasted);
  if (!unpinned_.empty() && !unpinned_.set().is_empty_range(range)) unpinned_.reserve(wasted);
}

uint64_t PageStates::drop_refs(UsageSet::Iterator first, FileRange range, uint32_t count) {
  reserve_to_drop(first, range, count);
  uint64_t wasted = 0;
  change_used(first, range, [&](FileRange part, PageUse& use) {
    if (use.refs == count) waste_.add(part);  // first: memory may run out
    use.refs -= count;
    if (unadopted_.exceeds(part, use.refs)) unadopted_.limit(part, use.refs);
    if (leased_.exceeds(part, use.refs)) leased_.limit(part, use.refs);
    if (kept_.exceeds(part, use.refs)) kept_.limit(part, use.refs);
    if (use.refs > 0) return;
    if (!pending_.empty()) pending_.forget(part);
    if (!unpinned_.empty()) unpinned_.forget(part);
    if (use.committed) {
      PGALLOC_CHECK(ledger_.move(part.length(), MemoryKind::kSystem, use.kind, use.memcg_id).ok());
    } else {
      use.memcg_id = 0;
    }
    use.kind = MemoryKind::kSystem;
    wasted += part.length();
  });
  used_bytes_ -= wasted;
  return wasted;
}

Result<bool> PageStates::has_unique_ref(FileRange range) const {
  PGALLOC_RETURN_IF_ERROR(check_used(range));
  return find_used(usage_, range, [](const PageUse& use) { return use.refs == 1; }).ok();
}

Result<std::optional<FileRange>> PageStates::first_shared(FileRange range) const {
  PGALLOC_RETURN_IF_ERROR(check_used(range));
  std::optional<FileRange> shared;
  usage_.visit_range(range, [&](FileRange part, const PageUse& use) {
    if (use.refs < 2) return !shared;
    if (!shared) shared = part;
    shared->end = part.end;
    return true;
  });
  return shared;
}

FileRange PageStates::front(FileRange range, size_t* left) const {
  const size_t most = std::max<size_t>(*left, 1);
  size_t count = std::max<size_t>(segment::cut(usage_, most, &range), 1);
  count = std::max(count, segment::cut(leased_.set(), most, &range));
  count = std::max(count, segment::cut(kept_.set(), most, &range));
  count = std::max(count, segment::cut(unpinned_.set(), most, &range));
  *left -= std::min(*left, count);
  return range;
}

void PageStates::mark_decommitted(FileRange range) {
  usage_.mutate_range(range, [&](FileRange part, PageUse& use) {
    if (!use.committed) return;
    unbook(part.length(), use);
    use.committed = false;
    if (use.refs == 0) use.memcg_id = 0;
  });
}

uint64_t PageStates::mark_committed(FileRange range, const std::vector<uint32_t>* memcg_ids) {
  if (!accounting_) return 0;
  uint64_t booked = 0;
  usage_.mutate_range(range, [&](FileRange part, PageUse& use) {
    if (use.refs == 0 || use.committed) return;
    if (memcg_ids != nullptr &&
        std::find(memcg_ids->begin(), memcg_ids->end(), use.memcg_id) == memcg_ids->end()) {
      return;
    }
    use.committed = true;
    book(part.length(), use);
    booked += part.length();
  });
  return booked;
}

void PageStates::reclaim_again(FileRange range) {
  waste_.reclaim_again(range, [this](FileRange part) { mark_unreleased(part); });
}

std::optional<FileRange> PageStates::take(std::optional<FileRange> range, uint64_t bytes_max) {
  if (!range) return std::nullopt;
  const uint64_t unit = waste_.is_partial(*range) || areas_.at(range->start) == PageSize::kSmall
                            ? page_size()
                            : huge_page_size();
  range->start =
      range->end - std::min(std::max(align_down(bytes_max, unit), unit), range->length());
  waste_.remove(*range);
  releasing_bytes_ += range->length();
  return range;
}

void PageStates::finish_release(FileRange range) {
  uint64_t covered_bytes = 0;
  bool any_committed = false;
  usage_.visit_range(range, [&](FileRange part, const PageUse& use) {
    PGALLOC_CHECK_OP(use.refs, ==, 0u);
    PGALLOC_CHECK(use.kind == MemoryKind::kSystem);
    any_committed = any_committed || use.committed;
    covered_bytes += part.length();
  });
  PGALLOC_CHECK_OP(covered_bytes, ==, range.length());
  const bool partial = waste_.is_partial(range);
  // Each step may run out of memory: what is done by then is not done again.
  if (any_committed || partial) {
    usage_.mutate_range(range, [&](FileRange part, PageUse& use) {
      if (use.committed) unbook(part.length(), use);
      use = PageUse{};
    });
  }
  if (partial) {
    waste_.add_subreleased(range);
  } else {
    usage_.remove_range(range);
  }
  releasing_bytes_ -= range.length();
}

void PageStates::mark_unreleased(FileRange range) {
  if (!accounting_) return;
  usage_.mutate_range(range, [&](FileRange part, PageUse& use) {
    PGALLOC_CHECK_OP(use.refs, ==, 0u);
    if (use.committed) return;
    use.committed = true;
    book(part.length(), use);
  });
}

void PageStates::quarantine(FileRange range) {
  releasing_bytes_ -= range.length();
  quarantined_bytes_ += range.length();
}

void PageStates::restore(const std::vector<PageSegment>& segments) {
  PGALLOC_CHECK(usage_.empty());
  for (const auto& [range, use, size] : segments) {
    PGALLOC_CHECK(use.refs > 0 && !use.committed);
    usage_.insert(range, use);
    unadopted_.record(range, use.refs);
    used_bytes_ += range.length();
    if (size == PageSize::kHuge) areas_.set(range, PageSize::kHuge);
  }
  for (const auto& [range, use, size] : segments) {
    if (size == PageSize::kSmall) areas_.set(range, PageSize::kSmall);
  }
  if (areas_.has_huge()) fill_up_huge_pages();
}

// What huge pages have beside the pages that are used is not free.
void PageStates::fill_up_huge_pages() {
  std::vector<uint64_t> borders;  // huge pages in which used ranges begin or end, in order
  for (auto segment = usage_.first(); segment.ok(); segment = segment.next()) {
    areas_.visit(segment.range(), [&](FileRange part, PageSize size) {
      if (size == PageSize::kSmall) return;
      borders.push_back(align_down(part.start, huge_page_size()));
      borders.push_back(align_down(part.end - 1, huge_page_size()));
    });
  }
  borders.erase(std::unique(borders.begin(), borders.end()), borders.end());
  std::vector<FileRange> gaps;
  for (const uint64_t start : borders) {
    const FileRange page{start, start + huge_page_size()};
    uint64_t reached = page.start;
    usage_.visit_range(page, [&](FileRange used, const PageUse&) {
      if (reached < used.start) gaps.push_back({reached, used.start});
      reached = used.end;
    });
    if (reached < page.end) gaps.push_back({reached, page.end});
  }
  for (const FileRange& gap : gaps) {
    usage_.insert(gap, PageUse{});
    waste_.add_subreleased(gap);
  }
}

Status PageStates::adopt(FileRange range) {
  PGALLOC_RETURN_IF_ERROR(check_used(range));
  if (unadopted_.remove(range, nullptr)) return {};
  return Status::error(ErrorCode::kRefCount,
                       text(range) + " has pages with no reference left to adopt");
}

uint64_t PageStates::drop_unadopted() {
  const auto dropped = unadopted_.set().export_segments();
  unadopted_.clear();
  uint64_t wasted = 0;
  for (const auto& [range, count] : dropped) {
    wasted += drop_refs(usage_.find(range.start), range, count);
  }
  return wasted;
}

Status PageStates::begin_lease(FileRange range) {
  PGALLOC_RETURN_IF_ERROR(check_used(range));
  bool owned = true;
  leased_.set().visit_range(range, [&](FileRange part, const uint32_t& leases) {
    usage_.visit_range(part,
                       [&](FileRange, const PageUse& use) { owned = owned && use.refs > leases; });
    return owned;
  });
  if (owned && leased_.add(range)) return {};
  return Status::error(ErrorCode::kRefCount, text(range) + " has pages of which all are leased");
}

Status PageStates::end_lease(FileRange range) {
  if (!range.empty() && leased_.remove(range, nullptr)) return {};
  return Status::error(ErrorCode::kRefCount, text(range) + " has pages without a lease");
}

std::vector<PageSegment> PageStates::owned_segments() const {
  std::vector<PageSegment> result;
  const auto append = [&](FileRange range, PageUse use, uint32_t leases, PageSize size) {
    use.refs = std::max(use.refs - leases, 1u);
    if (!result.empty() && result.back().range.end == range.start && result.back().use == use &&
        result.back().size == size) {
      result.back().range.end = range.end;
    } else {
      result.push_back({range, use, size});
    }
  };
  for (auto segment = usage_.first(); segment.ok(); segment = segment.next()) {
    const PageUse& use = segment.value();
    if (use.refs == 0) continue;
    areas_.visit(segment.range(), [&](FileRange part, PageSize size) {
      visit_counts(leased_.set(), part, kCount,
                   [&](FileRange piece, uint32_t leases) { append(piece, use, leases, size); });
    });
  }
  return result;
}

Status PageStates::unpin(FileRange range) {
  PGALLOC_RETURN_IF_ERROR(check_shape(range));
  if (!find_used(usage_, range, kAny).ok()) return unused_error(range);
  if (!unpinned_.empty() && !has_pinned(range)) {
    return Status::error(ErrorCode::kRefCount,
                         text(range) + " has pages that no handle has pinned");
  }
  unpinned_.add(range);
  return {};
}

// Whether each page has more references than unpinned handles.
bool PageStates::has_pinned(FileRange range) const {
  bool pinned = true;
  unpinned_.set().visit_range(range, [&](FileRange part, const UnpinnedTraits::Value& value) {
    usage_.visit_range(
        part, [&](FileRange, const PageUse& use) { pinned = pinned && use.refs > value.handles; });
    return pinned;
  });
  return pinned;
}

bool PageStates::is_discardable(FileRange range) const {
  if (!pending_.empty() && !pending_.set().is_empty_range(range)) return false;
  if (!kept_.empty() && !kept_.set().is_empty_range(range)) return false;
  uint64_t bytes = 0;
  usage_.visit_range(range, [&](FileRange part, const PageUse& use) {
    if (use.refs == 0 || !unpinned_.has(part, use.refs)) return false;
    bytes += part.length();
    return true;
  });
  return bytes == range.length();
}

Status PageStates::begin_keep(FileRange range) {
  PGALLOC_RETURN_IF_ERROR(check_used(range));
  if (kept_.set().is_empty_range(range) && kept_.add(range)) return {};
  return Status::error(ErrorCode::kRefCount, text(range) + " has pages that are kept already");
}

Status PageStates::end_keep(FileRange range) {
  if (!range.empty() && kept_.remove(range, nullptr)) return {};
  return Status::error(ErrorCode::kRefCount, text(range) + " has pages that are not kept");
}

Result<uint64_t> PageStates::drop_kept(FileRange range) {
  PGALLOC_RETURN_IF_ERROR(check_used(range));
  if (!kept_.has(range)) {
    return Status::error(ErrorCode::kRefCount, text(range) + " has pages that are not kept");
  }
  // First, with what drop_refs() needs of it: once the references are dropped, nothing may fail.
  size_t parts = 0;
  usage_.visit_range(range, [&](FileRange, const PageUse&) { ++parts; });
  kept_.reserve(parts + 1);
  Result<uint64_t> wasted = dec_ref(range);
  if (wasted.ok()) kept_.limit(range, 0);  // of pages that others have, too
  return wasted;
}

bool PageStates::is_only_kept(FileRange range) const {
  if (!pending_.empty() && !pending_.set().is_empty_range(range)) return false;
  uint64_t bytes = 0;
  usage_.visit_range(range, [&](FileRange part, const PageUse& use) {
    if (use.refs == 1) bytes += part.length();
    return use.refs == 1;
  });
  return bytes == range.length() && kept_.has(range);
}

std::vector<std::pair<FileRange, uint32_t>> PageStates::pinned() const {
  std::vector<std::pair<FileRange, uint32_t>> result;
  const auto append = [&](FileRange range, uint32_t count) {
    if (!result.empty() && result.back().first.end == range.start &&
        result.back().second == count) {
      result.back().first.end = range.end;
    } else {
      result.emplace_back(range, count);
    }
  };
  for (auto segment = usage_.first(); segment.ok(); segment = segment.next()) {
    const uint32_t refs = segment.value().refs;
    if (refs == 0 || refs == UINT32_MAX) continue;
    visit_counts(unpinned_.set(), segment.range(), kHandles, [&](FileRange part, uint32_t handles) {
      visit_counts(leased_.set(), part, kCount, [&](FileRange piece, uint32_t leases) {
        visit_counts(kept_.set(), piece, kCount, [&](FileRange same, uint32_t kept) {
          const uint64_t others = uint64_t{handles} + leases + kept;
          if (others < refs) append(same, static_cast<uint32_t>(refs - others));
        });
      });
    });
  }
  return result;
}

void PageStates::clear() {
  ledger_.clear();
  usage_.clear();
  waste_.clear();
  areas_.clear();
  pending_.clear();
  unadopted_.clear();
  leased_.clear();
  kept_.clear();
  unpinned_.clear();
  used_bytes_ = releasing_bytes_ = quarantined_bytes_ = known_committed_bytes_ = 0;
}

std::vector<PageSegment> PageStates::segments() const {
  std::vector<PageSegment> result;
  result.reserve(usage_.size());
  for (auto segment = usage_.first(); segment.ok(); segment = segment.next()) {
    areas_.visit(segment.range(), [&](FileRange part, PageSize size) {
      result.push_back({part, segment.value(), size});
    });
  }
  return result;
}

std::optional<std::string> PageStates::verify_waste() const {
  std::optional<std::string> broken;
  waste_.visit([&](FileRange range, bool given_back) {
    uint64_t dead = 0;
    usage_.visit_range(range, [&](FileRange part, const PageUse& use) {
      if (use.refs == 0 && !(given_back && use.committed)) dead += part.length();
    });
    if (dead != range.length()) broken = "waste range " + text(range) + " is in use";
  });
  return broken;
}

std::optional<std::string> PageStates::verify_restored() const {
  if (auto broken = pending_.verify()) return broken;
  for (auto pending = pending_.set().first(); pending.ok(); pending = pending.next()) {
    uint64_t used = 0;
    uint64_t dead = 0;
    usage_.visit_range(pending.range(), [&](FileRange part, const PageUse& use) {
      (use.refs > 0 ? used : dead) += part.length();
    });
    if (pending.value().arrival == Arrival::kArriving) used += dead;
    if (used != pending.range().length()) {
      return "pending pages " + text(pending.range()) + " are not in use";
    }
  }
  return std::nullopt;
}

std::optional<std::string> PageStates::verify_counts(const CountedPages& counts,
                                                     const char* what) const {
  for (auto part = counts.set().first(); part.ok(); part = part.next()) {
    uint64_t covered = 0;
    usage_.visit_range(part.range(), [&](FileRange used, const PageUse& use) {
      if (use.refs >= part.value()) covered += used.length();
    });
    if (part.value() == 0 || covered != part.range().length()) {
      return std::string(what) + " of " + text(part.range()) + " exceed the references";
    }
  }
  return std::nullopt;
}

std::optional<std::string> PageStates::verify_unpinned() const {
  if (auto broken = unpinned_.set().verify()) return "unpinned pages: " + *broken;
  for (auto part = unpinned_.set().first(); part.ok(); part = part.next()) {
    const auto& value = part.value();
    uint64_t covered = 0;
    usage_.visit_range(part.range(), [&](FileRange used, const PageUse& use) {
      if (use.refs >= value.handles) covered += used.length();
    });
    if (value.handles == 0 || covered != part.range().length()) {
      return "unpinned handles of " + text(part.range()) + " exceed the references";
    }
    if (value.discarded_at > unpinned_.now()) return "a discard has not happened yet";
  }
  return std::nullopt;
}

std::optional<std::string> PageStates::verify(uint64_t file_size) const {
  if (auto broken = usage_.verify()) return "usage set: " + *broken;
  if (auto broken = waste_.verify()) return "waste: " + *broken;

  uint64_t used = 0;
  uint64_t unreferenced = 0;
  LedgerSnapshot booked;
  std::optional<PageSegment> previous;
  for (const PageSegment& segment : segments()) {
    const auto& [range, use, size] = segment;
    if (!check_shape(range).ok()) return "segment " + text(range) + " is empty or misaligned";
    if (range.end > file_size) return "segment " + text(range) + " reaches beyond the file";
    if (previous && previous->range.end == range.start && previous->use == use &&
        previous->size == size) {
      return "segments " + text(previous->range) + " and " + text(range) + " are equal neighbours";
    }
    (use.refs > 0 ? used : unreferenced) += range.length();
    if (use.refs == 0 && use.kind != MemoryKind::kSystem) {
      return "segment " + text(range) + " has no references but a kind other than SYSTEM";
    }
    if (use.committed) {
      booked.total[static_cast<size_t>(use.kind)] += range.length();
      if (use.memcg_id != 0) {
        booked.memcgs[use.memcg_id][static_cast<size_t>(use.kind)] += range.length();
      }
    }
    previous = segment;
  }
  if (used != used_bytes_) return "used_bytes differs from the referenced segments";
  if (waste_.bytes() + waste_.subreleased_bytes() + releasing_bytes_ + quarantined_bytes_ !=
      unreferenced) {
    return "waste, subreleased, releasing and quarantined bytes differ from the unreferenced "
           "segments";
  }
  if (auto broken = verify_waste()) return broken;
  if (auto broken = verify_restored()) return broken;
  if (auto broken = verify_counts(unadopted_, "unadopted references")) return broken;
  if (auto broken = verify_counts(leased_, "leases")) return broken;
  if (auto broken = verify_counts(kept_, "kept pages")) return broken;
  if (auto broken = verify_unpinned()) return broken;
  if (booked.sum() != known_committed_bytes_) {
    return "known_committed_bytes differs from the committed segments";
  }
  const LedgerSnapshot ledger = ledger_.snapshot();
  if (ledger.total != booked.total || ledger.memcgs != booked.memcgs) {
    return "the ledger differs from the committed segments";
  }
  return std::nullopt;
}

}  // namespace pgalloc
