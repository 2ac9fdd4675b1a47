// Purpose: unpinned memory: which handles can do without their contents, and giving back what no
// handle has pinned.
//
// Thread safety: any thread.
//
// An entry belongs to a handle that owns a reference on each page of its range; it lives until
// forget(). A discard runs in batches: entries are chosen and their pages taken under the lock,
// punched without it, and settled under it again.
//
// Invariants
//   1. Pages in discarding_ are being punched because no handle has them pinned. None pins them or
//      takes a reference on them before the punch is through.
//   2. Each batch owns one reference on the pages it has taken, so that they cannot reach a new owner.
//   3. Between hold() and resume() nothing is discarded.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "backing/backing_file.h"
#include "backing/chunk_map.h"
#include "backing/commit_probe.h"
#include "file/file_state.h"
#include "file/keeper.h"
#include "file/reclaimer.h"
#include "pages/discard_queue.h"
#include "segment/range_set.h"

namespace pgalloc {

class Discarder {
 public:
  Discarder(FileState& state, BackingFile& file, ChunkMap& chunks, Reclaimer& reclaimer,
            bool enabled)
      : state_(state), file_(file), chunks_(chunks), reclaimer_(reclaimer), enabled_(enabled) {}
  Discarder(const Discarder&) = delete;
  Discarder& operator=(const Discarder&) = delete;

  // kRefCount if no handle had one of the entry's pages pinned.
  Status unpin(Discardable& entry) EXCLUDES(file_lock);
  // Waits for a discard of these pages that is under way; afterwards entry.discarded says if there
  // was one. With `in_place` the entry keeps its place in a queue whose policy knows visits.
  void pin(Discardable& entry, bool in_place) EXCLUDES(file_lock);
  // The same, or false if it would have to wait.
  bool try_pin(Discardable& entry) EXCLUDES(file_lock);
  // The handle ends, or gives its reference back.
  void forget(Discardable& entry) EXCLUDES(file_lock);
  void forget_locked(Discardable& entry) REQUIRES(file_lock);
  // An entry becomes two, or two neighbours one: so a long one is pinned, or ended, piece by piece, and
  // unpinned so. What was split waits in no queue any more. REQUIRES: `rest` is new; `next` begins where
  // `entry` ends, and was unpinned later, from the same handle.
  void split(Discardable& entry, Discardable& rest, uint64_t at) EXCLUDES(file_lock);
  void join(Discardable& entry, Discardable& next) EXCLUDES(file_lock);
  void wait_for_discards(FileRange range) REQUIRES(file_lock);
  bool is_being_discarded(FileRange range) const REQUIRES(file_lock);
  // Whether some are under way. Without a lock.
  bool discarding() const { return under_way_.load(std::memory_order_acquire) > 0; }

  // Discards unpinned allocations as their queues say, `bytes_max` or a little more, in one batch;
  // none whose order is beyond `order_max`.
  Discarded discard(uint64_t bytes_max, uint64_t order_max) EXCLUDES(file_lock);
  // The same, only of the queue of this payer (see sharing/payer.h).
  Discarded discard_paid_by(std::string_view payer, uint64_t bytes_max) EXCLUDES(file_lock);
  // Gives back unpinned pages by address: what was written to after it was discarded, and with
  // `waiting` what discard() would come to too late. About `bytes_max`; the bytes that went.
  uint64_t sweep(uint64_t bytes_max, bool waiting) EXCLUDES(file_lock);
  // How long ago the next to go was unpinned, compared with other files; nothing if none waits.
  std::optional<uint64_t> next_order() const EXCLUDES(file_lock);

  // Calls nest. What was begun before is over when hold() returns, what keepers do included.
  void hold() EXCLUDES(keepers_mu_, file_lock);
  void resume() EXCLUDES(file_lock);
  // Whether nothing is held, and the file is open.
  bool can_discard() const EXCLUDES(file_lock);

  // --- For keepers ---------------------------------------------------------------------------------

  // `keeper` is asked from here to remove_keeper(), which waits until it is not being asked.
  void add_keeper(Keeper& keeper) EXCLUDES(keepers_mu_);
  void remove_keeper(Keeper& keeper) EXCLUDES(keepers_mu_);
  // Its pages: each is kept once. Only it discards them.
  Status begin_keep(FileRange range) EXCLUDES(file_lock);
  Status end_keep(FileRange range) EXCLUDES(file_lock);
  // Gives back pages that are kept, and stay so: the ranges of which no other has a reference. REQUIRES: their keeper
  // has no use for their contents; kBatchMax ranges at most, in ascending order.
  static constexpr size_t kBatchMax = 512;
  Discarded discard_kept(std::span<const FileRange> ranges) EXCLUDES(file_lock);
  void before_fork() NO_THREAD_SAFETY_ANALYSIS;
  void after_fork_in_parent() NO_THREAD_SAFETY_ANALYSIS;

  // The queue of what this payer pays for: an entry's owner holds it as long as the entry may be in it.
  std::shared_ptr<DiscardQueue> queue_paid_by(const std::string& payer) EXCLUDES(file_lock);
  // The file was closed: its entries are forgotten.
  void clear() REQUIRES(file_lock);

  // What is broken of the invariants.
  std::optional<std::string> verify() const REQUIRES(file_lock);

 private:
  struct Batch;
  void pin_locked(Discardable& entry, bool in_place) REQUIRES(file_lock);
  // Whose turn it is: those come last whose memory others pay for.
  using Turn = std::pair<bool, uint64_t>;
  std::optional<Turn> turn_of_queues() const EXCLUDES(file_lock);
  Keeper* oldest_keeper(uint64_t* order) const REQUIRES(keepers_mu_);
  bool may_discard() const REQUIRES(file_lock);
  DiscardQueue& queue_of(const Discardable& entry) REQUIRES(file_lock) {
    return entry.queue == nullptr ? *queues_.front() : *entry.queue;
  }
  DiscardQueue* oldest_queue() const REQUIRES(file_lock);
  std::shared_ptr<DiscardQueue> find_paid_by(std::string_view payer) const REQUIRES(file_lock);
  void add(std::shared_ptr<DiscardQueue> queue) REQUIRES(file_lock);
  // Of this queue; nullptr: of all.
  Discarded discard_of(DiscardQueue* only, uint64_t bytes_max, uint64_t order_max)
      EXCLUDES(file_lock);
  void choose(Batch& batch, uint64_t bytes_max, uint64_t order_max, DiscardQueue* only,
              size_t& left) REQUIRES(file_lock);
  void take(Batch& batch) REQUIRES(file_lock);
  bool take_run(FileRange range, Batch& batch) REQUIRES(file_lock);
  bool take_run_unchecked(FileRange range, Batch& batch) REQUIRES(file_lock);
  std::vector<FileRange> next_unpinned(uint64_t& from, bool waiting) const REQUIRES(file_lock);
  uint64_t punch(Batch& batch) EXCLUDES(file_lock);
  uint64_t punch_uncounted(FileRange run, const CommitProbe& probe) EXCLUDES(file_lock);
  void settle(const Batch& batch, bool mark) REQUIRES(file_lock);

  FileState& state_;
  BackingFile& file_;
  ChunkMap& chunks_;
  Reclaimer& reclaimer_;
  const bool
      enabled_;  // not where pages are zeroed by hand: what is punched there need not be zero
  std::vector<std::shared_ptr<DiscardQueue>> queues_ GUARDED_BY(file_lock){
      std::make_shared<DiscardQueue>(DiscardPolicy::kLru)};  // the first is the file's own
  RangeSet discarding_ GUARDED_BY(file_lock);
  std::atomic<int> under_way_{0};
  int held_ GUARDED_BY(file_lock) = 0;
  CondVar ended_;
  mutable Mutex keepers_mu_{LockRank::kKeepers};
  std::vector<Keeper*> keepers_ GUARDED_BY(keepers_mu_);
};

}  // namespace pgalloc
