// Purpose: the references that the owner of a file keeps on behalf of one peer: the peer's leases.
//
// Thread safety: externally synchronised.
//
// Invariant: the table owns as many references on each page as it counts, and its file knows them as
// leases. It gives them back when it goes, so a peer that dies, however it dies, leaves none.
//
// Errors: a std::bad_alloc leaves everything as it was.
#pragma once

#include <cstdint>
#include <memory>

#include "file/memory_file.h"
#include "pages/counted_pages.h"

namespace pgalloc {

class LeaseTable {
 public:
  explicit LeaseTable(std::shared_ptr<MemoryFile> file) : file_(std::move(file)) {}
  // What there is no memory to give back stays in use.
  ~LeaseTable();
  LeaseTable(const LeaseTable&) = delete;
  LeaseTable& operator=(const LeaseTable&) = delete;

  const std::shared_ptr<MemoryFile>& file() const { return file_; }
  // The bytes of the pages that are held.
  uint64_t bytes() const { return held_.set().span(); }
  bool has(FileRange range) const { return !range.empty() && held_.has(range); }
  const CountedPages& held() const { return held_; }
  // The front of `range` that has few segments, in the table and in the file: see PageStates::front().
  FileRange front(FileRange range, size_t* left) const;

  // Takes over a reference on each page of `range` from the caller. On an error it is still the
  // caller's.
  Status add(FileRange range);
  // The same of a reference that is a lease already.
  Status add_lease(FileRange range);
  // Gives one back, or to the caller. kRefCount, without effect, unless each page is held.
  Status remove(FileRange range);
  Status hand_over(FileRange range);
  // Takes a reference wherever `other` has one, once for each page: from the page *from on, *left segments
  // at most, which both say how far it has come. True when that is all.
  Result<bool> copy_some(const LeaseTable& other, uint64_t* from, size_t* left);
  // Gives back leases on so many segments. True when nothing is left.
  bool drop_some(size_t count_max);
  // In a forked child the leases are the parent's, and its file must not be touched.
  bool forked() const { return generation_ != process_generation(); }

 private:
  Status give(FileRange range, Status (References::*call)(FileRange));

  const std::shared_ptr<MemoryFile> file_;
  const uint32_t generation_ = process_generation();
  CountedPages held_;
};

}  // namespace pgalloc
