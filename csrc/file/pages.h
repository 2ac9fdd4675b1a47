// Purpose: what a handle (Allocation) asks of the file its pages belong to. There are three: MemoryFile
// in the process that owns the pages, PeerFile in one that shares them, and OrphanedPages in a forked
// child that has no leases on them.
//
// Thread safety: any thread.
#pragma once

#include <cstdint>
#include <memory>

#include "backing/chunk_map.h"
#include "base/status.h"
#include "base/units.h"
#include "pages/discardable.h"

namespace pgalloc {

class Pages {
 public:
  virtual ~Pages() = default;

  // One reference more, or less, on each page of the range (rows C1 to C5).
  virtual Status inc_ref(FileRange range, uint32_t memcg_id) = 0;
  virtual Status dec_ref(FileRange range) = 0;
  virtual Result<bool> has_unique_ref(FileRange range) const = 0;

  // The address of any non-empty range inside the file (section E). It is valid while chunks() live.
  virtual Result<char*> map(FileRange range) = 0;
  // The same of a range that is mapped already, without any lock; nullptr if it is not.
  virtual Result<char*> find_mapped(FileRange range) const = 0;
  virtual std::shared_ptr<ChunkMap> chunks() const = 0;  // REQUIRES: not closed
  virtual bool readonly() const = 0;
  // Writes into used pages, a part of one too, without touching them: cheaper than page faults.
  virtual Status write(uint64_t offset, const char* data, uint64_t size) = 0;
  // Whether pages are still on their way from an image.
  virtual bool incomplete() const = 0;

  // Discardable memory, see Discarder. Where is_remote(), the owner of the pages is asked instead, by
  // Python: it has the connection.
  virtual bool is_remote() const = 0;
  virtual Status unpin(Discardable& entry) = 0;
  virtual void pin(Discardable& entry, bool in_place) = 0;
  virtual void forget(Discardable& entry) = 0;
  virtual bool discarding() const = 0;
  // The handle of `entry` ends: forget(), and dec_ref() of its range, in one step.
  virtual Status end_handle(Discardable& entry) = 0;

  // ErrorCode::kClosed, kForked or kOwnerGone, if that is so.
  virtual Status check_usable() const = 0;
};

}  // namespace pgalloc
