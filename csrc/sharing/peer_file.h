// Purpose: the pages of another process's MemoryFile, as far as this process has leases on them: its
// mapping, and how many handles here hold each page. What is let go of here is given back there.
//
// Thread safety: any thread. mu_ is held for counting only.
//
// Lock order: mu_, then the owner link's.
//
// Invariants
//   1. The owner keeps one reference for this process on each page that has a handle here, besides those
//      that are on their way: leases that arrive, and those that are given back.
//   2. What the owner may discard is recorded in unpinned_, from before it is told to after it has been
//      told otherwise. There is one handle here on such pages, of exactly this range. When another one
//      comes they are pinned first; that the contents were lost by then is remembered.
//   3. A page that is viewed keeps its lease, whatever else is closed.
//
// In a forked child none of this is used: inherit() makes a file of the child's own.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/process_generation.h"
#include "file/options.h"
#include "file/pages.h"
#include "pages/counted_pages.h"
#include "pages/ledger.h"
#include "sharing/owner_link.h"

namespace pgalloc {

class PeerFile final : public Pages, public std::enable_shared_from_this<PeerFile> {
 public:
  // The owner's name of the file, and how far its offsets may reach.
  struct Identity {
    uint64_t id = 0;
    uint64_t capacity = 0;
    bool readonly = false;  // `fd` cannot be written to
  };
  // Works on a copy of `fd`.
  static Result<std::shared_ptr<PeerFile>> create(int fd, const Identity& identity,
                                                  std::shared_ptr<OwnerLink> link);
  // For a fork peer of the owner: its parent's mapping, and the pages it has fork leases on, with the
  // number of its handles.
  static Result<std::shared_ptr<PeerFile>> inherit(
      std::shared_ptr<ChunkMap> chunks, int fd, const Identity& identity,
      std::shared_ptr<OwnerLink> link, const std::vector<std::pair<FileRange, uint32_t>>& pages);
  // For a forked child of a peer: what `parents` was when it forked, but for what that had unpinned at
  // the owner: handles on those pages own nothing here. A std::bad_alloc leaves `parents` as it was.
  // REQUIRES: the child has only this thread yet, and `parents` was locked when it was forked.
  static Result<std::shared_ptr<PeerFile>> inherit(PeerFile& parents,
                                                   std::shared_ptr<OwnerLink> link);
  ~PeerFile() override;
  PeerFile(const PeerFile&) = delete;
  PeerFile& operator=(const PeerFile&) = delete;

  // A lease on `range` has arrived; it becomes a reference of the caller's, or is given back.
  Status adopt(FileRange range) EXCLUDES(mu_);

  // --- What the owner is asked for: see OwnerLink::request() for waiting and its errors -------------

  using Patience = OwnerLink::Patience;
  // New pages. REQUIRES: request.mode is kAllocateOnly; see prepare().
  Result<FileRange> allocate(const AllocateRequest& request, const Patience& patience)
      EXCLUDES(mu_);
  Status decommit(FileRange range, const Patience& patience) EXCLUDES(mu_);
  // Whether one handle of one process holds each page, and this process it is.
  Result<bool> has_unique_ref(FileRange range, const Patience& patience) EXCLUDES(mu_);
  Result<KindBytes> usage(uint32_t memcg_id, const Patience& patience) const;
  // Lets the owner discard pages. False if other handles of this process are on them: they stay pinned.
  // Once it was asked they count as unpinned, whether its answer comes or not.
  Result<bool> unpin(FileRange range, const Patience& patience) EXCLUDES(mu_);
  // Whether the contents are what they were when the handle was unpinned.
  Result<bool> pin(FileRange range, const Patience& patience) EXCLUDES(mu_);
  // Another handle on these pages is about to come: what is unpinned of them is pinned.
  Status pin_others(FileRange range, const Patience& patience) EXCLUDES(mu_);

  Status inc_ref(FileRange range, uint32_t memcg_id) override EXCLUDES(mu_);
  Status dec_ref(FileRange range) override EXCLUDES(mu_);
  // Whether this process has one reference on each page; the owner knows of the others.
  Result<bool> has_unique_ref(FileRange range) const override EXCLUDES(mu_);

  // Whether it has one at least.
  bool holds(FileRange range) const EXCLUDES(mu_);

  Result<char*> map(FileRange range) override;
  Result<char*> find_mapped(FileRange range) const override;
  std::shared_ptr<ChunkMap> chunks() const override { return chunks_; }
  bool readonly() const override { return identity_.readonly; }
  Status write(uint64_t offset, const char* data, uint64_t size) override;
  bool incomplete() const override { return false; }

  bool is_remote() const override { return true; }
  Status unpin(Discardable&) override { return check_usable(); }
  void pin(Discardable&, bool) override {}
  void forget(Discardable&) override {}
  bool discarding() const override { return false; }
  Status end_handle(Discardable& entry) override { return dec_ref(entry.range); }

  // For new pages: fallocate (huge ones are touched instead), or prefaulting, which is best effort (rows
  // B13 to B15).
  Status commit(FileRange range);
  Status populate(FileRange range);

  // A view of pages that a handle holds begins, or ends. REQUIRES: as many ends as beginnings.
  void begin_view(FileRange range) EXCLUDES(mu_);
  void end_view(FileRange range) EXCLUDES(mu_);
  // The same for values of a served cache, which no handle holds: the owner is told of their end by the cache's
  // reader, and the link lives until then.
  void begin_value() { ++values_; }
  void end_value() { --values_; }

  // Gives all leases back, but those on pages that are viewed: these as soon as no view is left. True if
  // there are such.
  bool close() EXCLUDES(mu_);
  bool closed() const { return closed_.load(std::memory_order_acquire); }
  Status check_usable() const override;

  // Around a fork: its handles do not change from here to the fork. Harmless when repeated.
  void lock_for_fork() NO_THREAD_SAFETY_ANALYSIS;
  void unlock_after_fork() NO_THREAD_SAFETY_ANALYSIS;

  const Identity& identity() const { return identity_; }
  OwnerLink& link() const { return *link_; }
  const std::shared_ptr<OwnerLink>& shared_link() const { return link_; }
  int fd() const { return descriptor_.fd(); }
  uint64_t size() const;  // of the file, as far as it was looked at
  uint64_t leased_bytes() const EXCLUDES(mu_);

 private:
  PeerFile(std::shared_ptr<ChunkMap> chunks, os::Descriptor descriptor, const Identity& identity,
           std::shared_ptr<OwnerLink> link)
      : identity_(identity),
        descriptor_(std::move(descriptor)),
        chunks_(std::move(chunks)),
        link_(std::move(link)) {
    link_->begin_file();
  }
  static Result<std::shared_ptr<PeerFile>> make(std::shared_ptr<ChunkMap> chunks, int fd,
                                                const Identity& identity,
                                                std::shared_ptr<OwnerLink> link);
  Status not_held(FileRange range) const;
  void allow_huge_pages(FileRange range);
  void give_back(const std::vector<FileRange>& ranges);
  Status check_range(FileRange range) const;
  Status check_descriptor() const;
  Result<bool> reaches(uint64_t end) const;
  std::optional<FileRange> pages_in(std::string_view payload) const;
  std::string packed(FileRange range) const;
  Result<bool> ask_yes_or_no(wire::Op op, FileRange range, const Patience& patience);
  void forget_unpinned(FileRange range) REQUIRES(mu_);
  std::vector<FileRange> unpinned_in(FileRange range) const REQUIRES(mu_);
  OwnerLink::Exchange pinning(FileRange range, const std::shared_ptr<std::optional<bool>>& intact);

  const Identity identity_;
  const uint32_t generation_ = process_generation();
  os::Descriptor descriptor_;
  const std::shared_ptr<ChunkMap> chunks_;
  const std::shared_ptr<OwnerLink> link_;
  // A page of the file that is mapped, and not accessible, as long as there may be handles: the owner of a
  // process that has lost its connection looks for mappings, and nothing need be viewed yet.
  void* sign_ = nullptr;
  std::atomic<bool> closed_{false};
  std::atomic<uint64_t> values_{0};
  bool locked_for_fork_ = false;
  mutable std::atomic<uint64_t> size_{0};
  mutable Mutex mu_{LockRank::kMemoryFile};
  CountedPages handles_ GUARDED_BY(mu_);
  CountedPages viewed_ GUARDED_BY(mu_);
  CountedPages kept_ GUARDED_BY(mu_);  // after close(): pages that were viewed then
  std::map<uint64_t, FileRange> unpinned_ GUARDED_BY(mu_);  // by start
  std::map<uint64_t, FileRange> lost_ GUARDED_BY(mu_);      // pinned since, and not what they were
};

}  // namespace pgalloc
