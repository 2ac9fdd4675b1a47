// Purpose: one file as far as one peer is concerned: its leases, and what it has unpinned.
//
// Thread safety: externally synchronised (the broker's lock).
//
// Invariants
//   1. The peer holds a page by leases, or by one unpinned range, or by both; all are in here.
//   2. Unpinned ranges do not overlap. Each owns a reference on its pages that is no lease; it may have
//      stayed pinned, if memory ran out.
//   3. What goes wrong changes nothing: not the leases, not what is unpinned. (But of ranges that are
//      worked on piece by piece the pieces before it.)
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "base/status.h"
#include "file/memory_file.h"
#include "sharing/lease_table.h"

namespace pgalloc {

class Share {
 public:
  explicit Share(std::shared_ptr<MemoryFile> file) : table_(std::move(file)) {}
  ~Share();  // as ~LeaseTable()
  Share(const Share&) = delete;
  Share& operator=(const Share&) = delete;

  const std::shared_ptr<MemoryFile>& file() const { return table_.file(); }
  LeaseTable& table() { return table_; }
  bool empty() const { return table_.held().empty() && unpinned_.empty(); }
  uint64_t bytes() const { return table_.bytes() + unpinned_bytes_; }
  size_t unpinned_count() const { return unpinned_.size(); }

  // kRefCount unless the peer holds all of it.
  Status need(FileRange range) const;

  // The peer has let go of these pages: one lease on each, or what it has unpinned of them. False if
  // it has to be asked again: pages are being discarded just now.
  Result<bool> release(FileRange range);

  // A lease becomes an unpinned reference: the contents may be discarded. `payer`: see payer.h.
  Status unpin(FileRange range, const std::string& payer = {});
  // And back. Whether the contents are what they were; nothing if it has to be asked again.
  Result<std::optional<bool>> pin(FileRange range);

  // The same piece by piece, so that each takes a short time: with the front of `range` for which there
  // are *left segments at most, which are counted off. What of it is done; nothing if it has to be asked
  // again, at once if *left is 0. What goes wrong leaves what was done before.
  FileRange front(FileRange range, size_t* left) const { return table_.front(range, left); }
  // need() of this piece of a range.
  Status need(FileRange range, FileRange piece) const;
  Result<FileRange> release_front(FileRange range, size_t* left);
  // From `from` on: what comes before was done so.
  Result<FileRange> unpin_front(FileRange range, uint64_t from, size_t* left,
                                const std::string& payer = {});
  // When it comes to the end, *intact says if all of the contents are what they were.
  Result<FileRange> pin_front(FileRange range, uint64_t from, size_t* left, bool* intact);

  // Gives back what the peer held, about so many segments of it. True when nothing is left.
  bool end_some(size_t segments_max);

  // What is wrong, if something is.
  std::optional<std::string> verify() const;

 private:
  struct Entry : Discardable {
    std::shared_ptr<DiscardQueue> held_queue;  // `queue`, unless that is the file's own
    bool is_rest = false;                      // of a longer one, whose front is pinned already
  };
  using Unpinned = std::map<uint64_t, std::unique_ptr<Entry>>;  // by start
  Unpinned::iterator first_unpinned(FileRange range);
  Unpinned::const_iterator unpinned_at(FileRange range) const;
  std::optional<bool> pin_entry(Unpinned::iterator entry);
  void take_back(Unpinned::iterator entry);
  void end_entry(Unpinned::iterator entry);
  void split(Unpinned::iterator entry, uint64_t at);
  void join(Unpinned::iterator entry);

  LeaseTable table_;
  Unpinned unpinned_;
  uint64_t unpinned_bytes_ = 0;
};

}  // namespace pgalloc
