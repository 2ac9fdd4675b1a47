// Purpose: the bookkeeping of one file's pages: which are used, by how many, as what; which wait to
// be reclaimed. Pure data: no lock, no system call, no thread; that makes it testable as it stands.
//
// Thread safety: externally synchronised (the file's lock). It books to the ledger, which has a
// lock of its own with a higher rank.
//
// Invariants, proved by verify()
//   1. Every waste range is covered by usage segments with 0 references, kind SYSTEM; every subreleased
//      range too, and these are not committed, as far as is known.
//   2. used_bytes + unreferenced bytes = usage.span(), and waste bytes + subreleased bytes +
//      releasing_bytes + quarantined_bytes = the unreferenced bytes.
//   3. No segment is empty, overlaps another or reaches beyond the file size; all are page-aligned.
//   4. Neighbouring segments differ: the set is minimal.
//   5. known_committed_bytes = the bytes of committed segments, and the ledger holds exactly these,
//      kind by kind and memory cgroup by memory cgroup.
//   6. Pages that wait for their contents, or whose contents are broken, are used; pages whose
//      contents are arriving are used or waste, and stay out of take_waste() and recycle().
//   7. No page has more unadopted references than references, or more leases, or more unpinned
//      handles.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "pages/counted_pages.h"
#include "pages/ledger.h"
#include "pages/page_use.h"
#include "pages/pending_pages.h"
#include "pages/placement.h"
#include "pages/unpinned_pages.h"
#include "pages/waste.h"

namespace pgalloc {

struct PageSegment {
  FileRange range;
  PageUse use;
  PageSize size = PageSize::kSmall;  // of the areas it lies in
};

class PageStates {
 public:
  // Without `accounting`, no page is ever known to be committed, and nothing is booked.
  explicit PageStates(Ledger& ledger, uint64_t capacity = kMaxOffset, bool accounting = true)
      : ledger_(ledger), accounting_(accounting), areas_(capacity) {}
  PageStates(const PageStates&) = delete;
  PageStates& operator=(const PageStates&) = delete;

  const UsageSet& usage() const { return usage_; }
  const Areas& areas() const { return areas_; }
  uint64_t used_bytes() const { return used_bytes_; }
  uint64_t waste_bytes() const { return waste_.bytes(); }
  uint64_t recyclable_bytes() const { return waste_.recyclable_bytes(); }
  uint64_t waste_part_bytes() const { return waste_.part_bytes(); }
  size_t waste_ranges() const { return waste_.ranges(); }
  uint64_t releasing_bytes() const { return releasing_bytes_; }
  uint64_t quarantined_bytes() const { return quarantined_bytes_; }
  // Everything that is used or has yet to be given back: what the maximum of row B3 limits.
  uint64_t allocated_bytes() const { return usage_.span() - waste_.subreleased_bytes(); }
  uint64_t known_committed_bytes() const { return known_committed_bytes_; }

  // A place for pages of this size.
  std::optional<Place> find_place(PageSize size, const PlacementRequest& request) const {
    if (size == PageSize::kSmall && !areas_.has_huge()) return pgalloc::find_place(usage_, request);
    return find_place_in_areas(usage_, areas_, size, request);
  }
  // The areas of `range` are for pages of this size from here on. REQUIRES: nothing is allocated in those
  // that were not.
  void set_areas(FileRange range, PageSize size) { areas_.set(range, size); }
  // free -> used with one reference. REQUIRES: find_place() has just found `place` in usage(), and its
  // areas are for pages of its size.
  void mark_used(const Place& place, MemoryKind kind, uint32_t memcg_id);
  // waste -> used with one reference, contents unchanged: a place for `length` bytes inside waste,
  // so that pages that are about to be written need not leave and come back. Nothing if no waste
  // range of the few nearest to the asked end of the file has room.
  std::optional<FileRange> recycle(uint64_t length, uint64_t alignment, Direction direction,
                                   PageSize size, MemoryKind kind, uint32_t memcg_id);

  // Row C1: the whole range is page-aligned, not empty, and every page has at least one reference.
  Status check_used(FileRange range) const;
  // Rows C1 to C3. Pages that no memory cgroup pays for yet are charged to `memcg_id` unless it is
  // 0.
  Status inc_ref(FileRange range, uint32_t memcg_id);
  // Rows C1 and C4. The bytes that became waste.
  Result<uint64_t> dec_ref(FileRange range);
  // Row C5.
  Result<bool> has_unique_ref(FileRange range) const;
  // Row C6: the first longest run of pages in `range` with more than one reference each; nothing if there
  // is none.
  Result<std::optional<FileRange>> first_shared(FileRange range) const;

  // The front of `range` for which the books have few segments, so that what is done with it takes a
  // short time: *left of each kind at most, but one, which are counted off.
  FileRange front(FileRange range, size_t* left) const;

  // Row D2. Pages of `range` that are used are not committed any more.
  void mark_decommitted(FileRange range);
  // Row H3. Pages of `range` that are used and not known to be committed become so; a memory cgroup
  // filter restricts it to pages that one of `memcg_ids` pays for. The bytes newly booked: none without
  // accounting.
  uint64_t mark_committed(FileRange range, const std::vector<uint32_t>* memcg_ids);

  // Row H3. Pages of `range` that were subreleased are committed all the same: they become waste once more.
  void reclaim_again(FileRange range);

  // Row F1: the waste range that take_waste() would take, if there is one. Parts of huge pages of which the rest
  // is used are apart: those that begin below `below`.
  std::optional<FileRange> next_waste() const { return waste_.next(pending_); }
  std::optional<FileRange> next_waste_part(uint64_t below) const {
    return waste_.next_part(pending_, below);
  }
  // waste -> releasing: the upper end of that range, about `bytes_max` of it.
  std::optional<FileRange> take_waste(uint64_t bytes_max) { return take(next_waste(), bytes_max); }
  std::optional<FileRange> take_waste_part(uint64_t below) {
    return take(next_waste_part(below), UINT64_MAX);
  }
  // Whether these pages, which were taken, are parts of huge pages that are used otherwise.
  bool is_partial(FileRange range) const { return waste_.is_partial(range); }
  // releasing -> free, or subreleased. Checks row F4.
  void finish_release(FileRange range);
  // Pages that are being released are in memory still: so they are in the account, too.
  void mark_unreleased(FileRange range);
  // releasing -> quarantined: the pages could not be emptied (row F2) and are never used again.
  void quarantine(FileRange range);

  // Restoring (section J). Free pages -> used, by the references of an image.
  // Areas that hold pages of both sizes by then become small. REQUIRES: nothing is used; the segments are in
  // ascending order and do not overlap; the file reaches to the end of the last huge page.
  void restore(const std::vector<PageSegment>& segments);
  // Row J7: one reference on each page has found its owner. kRefCount if one has none left.
  Status adopt(FileRange range);
  // Drops all references that have no owner. The bytes that became waste.
  uint64_t drop_unadopted();
  // References that a restored file has because the image says so, without an owner yet.
  const CountedPages& unadopted() const { return unadopted_; }
  const PendingPages& pending() const { return pending_; }
  // For the component that loads the contents of an image.
  PendingPages& pending() { return pending_; }

  // Leases: references that other processes hold. One of each page's references becomes a lease;
  // kRefCount if all are leases already.
  Status begin_lease(FileRange range);
  // A lease becomes a reference like any other. kRefCount unless each page has one.
  Status end_lease(FileRange range);
  // What an image records: the used pages with their references, without leases. A page of which only
  // other processes have references keeps one.
  std::vector<PageSegment> owned_segments() const;

  // Discardable memory. One more handle of each page is unpinned; kRefCount if all are already.
  Status unpin(FileRange range);
  // Whether the contents are not needed: all references are unpinned, and nothing is on its way.
  bool is_discardable(FileRange range) const;
  // The pages that handles of this process have pinned, in order, with the number of these handles. A keeper is none.
  std::vector<std::pair<FileRange, uint32_t>> pinned() const;
  const UnpinnedPages& unpinned() const { return unpinned_; }
  UnpinnedPages& unpinned() { return unpinned_; }

  // Pages that a Keeper (file/keeper.h) discards by itself: one of each page's references is the keeper's.
  // kRefCount if one is already. Nothing else discards them.
  Status begin_keep(FileRange range);
  // kRefCount unless each page is kept.
  Status end_keep(FileRange range);
  // Ends that, and drops the keeper's reference: the bytes that became waste.
  Result<uint64_t> drop_kept(FileRange range);
  // Whether only the keeper has these pages, and nothing is on its way.
  bool is_only_kept(FileRange range) const;
  const CountedPages& kept() const { return kept_; }

  // Section I: forgets everything; the ledger returns to zero.
  void clear();

  size_t bookkeeping_bytes() const { return usage_.memory_bytes() + waste_.memory_bytes(); }
  std::vector<PageSegment> segments() const;
  // The first broken invariant in words.
  std::optional<std::string> verify(uint64_t file_size) const;

 private:
  // Drops `count` references of every page: the bytes that became waste.
  // REQUIRES: `first` begins the segments that cover `range`, all with at least `count`.
  void reserve_to_drop(UsageSet::Iterator first, FileRange range, uint32_t count);
  uint64_t drop_refs(UsageSet::Iterator first, FileRange range, uint32_t count);
  void mark_used_before(FileRange tail, FileRange range, const PageUse& use);
  void fill_up_huge_pages();
  std::optional<FileRange> take(std::optional<FileRange> waste, uint64_t bytes_max);
  template <class Change>
  void change_used(UsageSet::Iterator first, FileRange range, Change change);
  std::optional<std::string> verify_waste() const;
  std::optional<std::string> verify_restored() const;
  std::optional<std::string> verify_counts(const CountedPages& counts, const char* what) const;
  std::optional<std::string> verify_unpinned() const;
  bool has_pinned(FileRange range) const;
  // Why `range` is not used throughout.
  Status unused_error(FileRange range) const;
  void book(uint64_t bytes, const PageUse& use);
  void unbook(uint64_t bytes, const PageUse& use);

  Ledger& ledger_;
  const bool accounting_;
  Areas areas_;
  UsageSet usage_;
  Waste waste_{areas_};
  PendingPages pending_;
  CountedPages unadopted_;
  CountedPages leased_;
  CountedPages kept_;
  UnpinnedPages unpinned_;
  uint64_t used_bytes_ = 0;
  uint64_t releasing_bytes_ = 0;
  uint64_t quarantined_bytes_ = 0;
  uint64_t known_committed_bytes_ = 0;
};

}  // namespace pgalloc
