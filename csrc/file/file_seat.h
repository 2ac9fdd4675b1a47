// Purpose: where handles find their pages. A process that makes a file, or connects to one, uses it as
// it is; in a child that it forks, the same handles find OrphanedPages instead, until the child has
// leases of its own. So neither files nor handles ask whether they are in a forked child.
//
// Thread safety: any thread. become() and set_guard() belong to the only thread of a child that was just
// forked.
//
// Invariants
//   1. pages() never returns a file of another process, whose locks may be held by threads that are not
//      here.
//   2. In a forked child without a file of its own, the pages that views show are leased through
//      guard(); or no other process gets them; or the child cannot touch them (sharing/forks.h).
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "base/listed.h"
#include "base/process_generation.h"
#include "file/memory_file.h"
#include "file/orphaned_pages.h"

namespace pgalloc {

class FileSeat : public Listed<FileSeat, LockRank::kSeats> {
 public:
  // For the owner of the pages, and for a peer.
  explicit FileSeat(const std::shared_ptr<MemoryFile>& file)
      : owned_(file.get()), pages_(file), orphaned_(*file) {
    enlist();
  }
  explicit FileSeat(std::shared_ptr<Pages> pages) : pages_(std::move(pages)), orphaned_(*pages_) {
    enlist();
  }
  ~FileSeat() { unlist(); }
  FileSeat(const FileSeat&) = delete;
  FileSeat& operator=(const FileSeat&) = delete;

  // The file, in the process that owns it; elsewhere nullptr.
  MemoryFile* owned() const { return orphaned() ? nullptr : owned_; }
  Pages& pages() { return orphaned() ? static_cast<Pages&>(orphaned_) : *pages_; }
  const Pages& pages() const { return const_cast<FileSeat*>(this)->pages(); }
  // What pages() was in the process that used it last: for what never changes, and for inheriting.
  Pages& latest() const { return *pages_; }
  // Whether this is a forked child without a file of its own.
  bool orphaned() const { return generation_ != process_generation(); }

  // In a child that was just forked: whether its parent could use the file.
  bool used_by_parent() const { return generation_ + 1 == process_generation(); }
  // What keeps leases on what is viewed, as long as this seat is there; or nothing.
  const std::shared_ptr<void>& guard() const { return guard_; }
  void set_guard(std::shared_ptr<void> guard) { guard_ = std::move(guard); }

  // The child has leases from here on, through `pages`.
  void become(std::shared_ptr<Pages> pages) {
    owned_ = nullptr;
    pages_ = std::move(pages);
    orphaned_.follow(*pages_);  // for the next generation
    generation_ = process_generation();
  }

 private:
  MemoryFile* owned_ = nullptr;
  std::shared_ptr<Pages> pages_;
  uint32_t generation_ = process_generation();
  OrphanedPages orphaned_;
  std::shared_ptr<void> guard_;
};

}  // namespace pgalloc
