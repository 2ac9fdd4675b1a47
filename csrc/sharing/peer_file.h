// Purpose: the pages of another process's MemoryFile, as far as this process has leases on them: its
// mapping, and how many handles here hold each page. What is let go of here is given back there.
//
// Thread safety: any thread. mu_ is held for counting only.
//
// Lock order: mu_, then the owner link's.
//
// Invariant: the owner keeps one reference for this process on each page that has a handle here,
// besides those that are on their way: leases that arrive, and those that are given back.
//
// In a forked child none of this is used: inherit() makes a file of the child's own.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/process_generation.h"
#include "file/pages.h"
#include "pages/counted_pages.h"
#include "sharing/owner_link.h"

namespace pgalloc {

class PeerFile final : public Pages {
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
  // the owner: handles on those pages own nothing here. REQUIRES: the child has only this thread yet.
  static Result<std::shared_ptr<PeerFile>> inherit(PeerFile& parents,
                                                   std::shared_ptr<OwnerLink> link,
                                                   const std::vector<FileRange>& unpinned);
  ~PeerFile() override;
  PeerFile(const PeerFile&) = delete;
  PeerFile& operator=(const PeerFile&) = delete;

  // A lease on `range` has arrived; it becomes a reference of the caller's.
  Status adopt(FileRange range) EXCLUDES(mu_);

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

  // For new pages: fallocate, or prefaulting, which is best effort (rows B13 to B15).
  Status commit(FileRange range);
  Status populate(FileRange range);

  // Gives all leases back; what is viewed stays mapped, and its pages are as the owner leaves them.
  void close() EXCLUDES(mu_);
  bool closed() const { return closed_.load(std::memory_order_acquire); }
  Status check_usable() const override;

  const Identity& identity() const { return identity_; }
  int fd() const { return fd_; }
  uint64_t size() const;  // of the file, as far as it was looked at
  uint64_t leased_bytes() const EXCLUDES(mu_);

 private:
  PeerFile(std::shared_ptr<ChunkMap> chunks, int fd, const Identity& identity,
           std::shared_ptr<OwnerLink> link)
      : identity_(identity), fd_(fd), chunks_(std::move(chunks)), link_(std::move(link)) {}
  Status not_held(FileRange range) const;
  Status check_range(FileRange range) const;
  Result<bool> reaches(uint64_t end) const;

  const Identity identity_;
  const uint32_t generation_ = process_generation();
  const int fd_;
  const std::shared_ptr<ChunkMap> chunks_;
  const std::shared_ptr<OwnerLink> link_;
  std::atomic<bool> closed_{false};
  mutable std::atomic<uint64_t> size_{0};
  mutable Mutex mu_{LockRank::kMemoryFile};
  CountedPages handles_ GUARDED_BY(mu_);
};

}  // namespace pgalloc
