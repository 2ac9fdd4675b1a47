// Purpose: one file of pages: the object everything else in this room serves. It puts the parts
// together (backing file, chunk map, page states, ledger, evictables, reclaimer) and is the only
// place where they meet.
//
// Thread safety: every public method may be called from any thread. mu_ guards the page states and
// everything else that changes together with them. It is held for searching and marking only: never
// across a system call that can take long, never across a callback.
//
// Lock order: LiveFiles registry, scan_mu_, thread_mu_, mu_, then evictables, chunk map, ledger.
//
// Invariants
//   1. mu_ is free while a page is punched, committed, populated, zeroed, counted.
//   2. operations_ counts the calls that use the descriptor without mu_; close() waits for them.
//   3. A result of a commit scan is applied only to pages outside disturbed_: those whose contents
//      or owner changed while the scan looked (row H3).
//   4. In a forked child no lock here is ever taken: handles ask heir_, once the child is a peer.
//   5. gate_ is 0 only while the file is open and no page is pending: then map() needs no lock.
//   6. Pages in discarding_ are being punched because nobody has them pinned. Nobody pins them or
//      takes a reference on them before the punch is through.
//
// Where to find what: memory_file.cc construction, close, small calls; allocate.cc section B;
// reclaim.cc F; update_usage.cc H; discard.cc unpinned memory; save.cc, load.cc J; threads.cc threads.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "base/units.h"
#include "core/backing_file.h"
#include "core/chunk_map.h"
#include "core/clock.h"
#include "core/discard_queue.h"
#include "core/evictables.h"
#include "core/extent_builder.h"
#include "core/image_file.h"
#include "core/inheritance.h"
#include "core/ledger.h"
#include "core/live_files.h"
#include "core/page_states.h"
#include "core/pages.h"
#include "core/peer_file.h"
#include "core/placement.h"

namespace pgalloc {

enum class AllocationMode : uint8_t {
  kAllocateOnly = 0,
  kAllocateAndCommit = 1,
  kAllocateAndWritePopulate = 2,
};

enum class DelayedEviction : uint8_t { kDefault = 0, kDisabled = 1, kEnabled = 2, kManual = 3 };

struct AdoptedDescriptor {
  int fd;
  bool duplicate = false;  // leave `fd` to the caller and work on a copy of it
};
struct BackingPath {
  std::string path;
};
using Backing = std::variant<std::monostate, BackingPath, AdoptedDescriptor>;  // first: a memfd

struct MemoryFileOptions {
  std::optional<uint64_t> capacity;
  DelayedEviction delayed_eviction = DelayedEviction::kDefault;
  bool use_host_memcg_pressure = false;
  bool decommit_on_destroy = false;
  bool manual_zeroing = false;
  bool disable_ima_workaround = false;
  std::optional<uint64_t> max_allocatable_bytes;
};

struct AllocateRequest {
  uint64_t length = 0;
  MemoryKind kind = MemoryKind::kAnonymous;
  Direction direction = Direction::kBottomUp;
  AllocationMode mode = AllocationMode::kAllocateOnly;
  uint32_t memcg_id = 0;
  // The caller writes every byte before anybody reads one: pages may come with what was there.
  bool will_be_overwritten = false;
};

// Counts and bytes since construction.
struct MemoryFileStats {
  uint64_t allocations = 0;
  uint64_t allocated_bytes = 0;
  uint64_t freed_bytes = 0;     // reached 0 references
  uint64_t recycled_bytes = 0;  // went from waste straight to a new owner
  uint64_t punches = 0;
  uint64_t punched_bytes = 0;
  uint64_t decommitted_bytes = 0;
  uint64_t punch_failures = 0;
  uint64_t lost_bytes = 0;  // could be neither punched nor zeroed: never used again
  uint64_t discards = 0;    // of unpinned allocations
  uint64_t discarded_bytes = 0;
  uint64_t unpinned_bytes = 0;  // of pages that may be discarded, or are: now
  uint64_t scans = 0;
  uint64_t voided_results = 0;  // scan results dropped because their pages changed meanwhile
};

namespace testing {
// While false, files start no threads that load images.
extern std::atomic<bool> loaders_allowed;
}  // namespace testing

class CommitProbe;

class MemoryFile final : public Pages, public std::enable_shared_from_this<MemoryFile> {
 public:
  using Deadline = std::optional<std::chrono::steady_clock::time_point>;

  static Result<std::shared_ptr<MemoryFile>> create(const Backing& backing,
                                                    const MemoryFileOptions& options);
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  // Section B. With may_wait false, a request that would have to wait for the reclaimer before it
  // is refused fails with kOutOfMemory and sets *must_wait.
  Result<FileRange> allocate(const AllocateRequest& request, bool may_wait,
                             bool* must_wait = nullptr) EXCLUDES(mu_);

  // Section C.
  Status inc_ref(FileRange range, uint32_t memcg_id) override EXCLUDES(mu_);
  Status dec_ref(FileRange range) override EXCLUDES(mu_);
  Result<bool> has_unique_ref(FileRange range) const override EXCLUDES(mu_);

  // Section D.
  Status decommit(FileRange range) EXCLUDES(mu_);

  // Writes into used pages, a part of one too, without touching them: cheaper than page faults.
  Status write(uint64_t offset, const char* data, uint64_t size) override EXCLUDES(mu_);

  // Section E: the address of any non-empty range inside the file. If the range is pending, this
  // loads it or waits for it; whoever must not block calls load() before.
  Result<char*> map(FileRange range) override {
    if (gate_.load(std::memory_order_acquire) == 0 && !range.empty() &&
        range.end <= file_->size() && chunks_->is_mapped(range)) {
      return chunks_->address(range.start);
    }
    return map_slow(range);
  }
  // Whoever hands out an address keeps this alive as long as the address is in use.
  // REQUIRES: not closed.
  std::shared_ptr<ChunkMap> chunks() const override { return chunks_; }
  bool readonly() const override { return false; }

  // Section F. False when the deadline passed first.
  bool wait_for_reclaim(Deadline deadline) EXCLUDES(mu_);

  // Section G.
  Status mark_evictable(Evictables::UserId user, FileRange range) EXCLUDES(mu_);
  // Shared, so that a thread that waits for evictions does not keep the file open.
  const std::shared_ptr<Evictables>& evictables() const { return evictables_; }
  bool should_cache_evictable() const;

  // Section H. True when the account is current, false when a scan was due but may not run yet (too
  // soon after the last one, or another one under way).
  Result<bool> update_usage(const std::vector<uint32_t>* memcg_ids) EXCLUDES(mu_, scan_mu_);
  Result<uint64_t> total_usage() const EXCLUDES(mu_);
  uint64_t total_size() const { return file_->size(); }
  uint64_t capacity() const { return capacity_; }
  const Ledger& ledger() const { return ledger_; }
  std::vector<PageSegment> segments() const EXCLUDES(mu_);
  MemoryFileStats stats() const EXCLUDES(mu_);
  // What went wrong where nobody could be told: oldest first, and forgotten once taken.
  std::vector<std::string> take_warnings() EXCLUDES(mu_);

  // Discardable memory. An entry belongs to a handle that owns a reference on each page of its
  // range, and lives until forget(). kRefCount if no handle had one of its pages pinned.
  Status unpin(Discardable& entry) override EXCLUDES(mu_);
  // Waits for a discard of these pages that is under way; afterwards entry.lost says if there was
  // one. With `in_place` the entry keeps its place in a queue whose policy knows visits.
  void pin(Discardable& entry, bool in_place) override EXCLUDES(mu_);
  // The handle ends, or gives its reference back.
  void forget(Discardable& entry) override EXCLUDES(mu_);
  // Discards unpinned allocations as their queues say, `bytes_max` or a little more, in one batch;
  // none whose order is beyond `order_max`.
  struct Discarded {
    uint64_t bytes = 0;  // of those that were discarded; 0 when none is left that can go
    uint64_t given_back =
        0;  // of pages that went back to the kernel: some may never have been used
  };
  Discarded discard(uint64_t bytes_max, uint64_t order_max) EXCLUDES(mu_);
  // Gives back unpinned pages by address: what was written to after it was discarded, and with
  // `waiting` what discard() would come to too late. About `bytes_max`; the bytes that went.
  uint64_t discard_leftovers(uint64_t bytes_max, bool waiting) EXCLUDES(mu_);
  // How long ago the next to go was unpinned, compared with other files; nothing if nobody waits.
  std::optional<uint64_t> next_discard_order() const EXCLUDES(mu_);
  // Between the two nothing is discarded. Calls nest.
  void hold_discards() EXCLUDES(mu_);
  void resume_discards() EXCLUDES(mu_);
  bool discarding() const override {
    return discards_under_way_.load(std::memory_order_acquire) > 0;
  }
  bool discards_elsewhere() const override { return forked() && heir_ != nullptr; }
  // A queue beside the file's own; it lasts as long as somebody else holds it, or entries are in it.
  std::shared_ptr<DiscardQueue> add_queue(DiscardPolicy policy) EXCLUDES(mu_);
  std::vector<uint64_t> take_discarded_ids(DiscardQueue& queue) EXCLUDES(mu_);
  std::vector<uint64_t> take_victims(DiscardQueue& queue, uint64_t bytes) EXCLUDES(mu_);

  // Section J, saving. What an image says about the pages; nothing if not all freed pages were back
  // with the kernel by the deadline.
  struct Capture {
    uint64_t file_size = 0;
    std::vector<PageSegment> segments;  // ascending, all used
  };
  Result<std::optional<Capture>> capture(std::chrono::steady_clock::time_point deadline)
      EXCLUDES(mu_);
  // The first offset from `offset` on that may have data; kMaxOffset if there is none.
  Result<uint64_t> next_data(uint64_t offset) const EXCLUDES(mu_);
  Status build_extent(std::span<const FileRange> parts, bool keep_zeros,
                      ExtentBuilder::Extent& extent) const EXCLUDES(mu_);

  // Section J, restoring. The pages of an image, used as it says; their contents come by
  // write_restored(), or with start_loading(). REQUIRES for both: this file is not shared yet.
  Status restore(uint64_t file_size, const std::vector<image::Usage>& usage) EXCLUDES(mu_);
  Status write_restored(const image::ExtentHead& head, const char* raw) EXCLUDES(mu_);
  // From here on, pages of the image's extents are pending. With `threads`, threads of the core load
  // them; encoded extents need threads from outside.
  Status start_loading(std::shared_ptr<const ImageFile> image, unsigned threads) EXCLUDES(mu_);

  // An extent on its way, for whoever decodes it.
  class ArrivingExtent;
  // Loads what `range` still waits for, and waits for what others are loading. True: it is all
  // there. False: the deadline passed, or *encoded has to be decoded first. The error of a page that
  // could not be loaded, if there is one in `range`, unless those are to be ignored.
  Result<bool> load(FileRange range, std::chrono::steady_clock::time_point deadline,
                    std::unique_ptr<ArrivingExtent>* encoded, bool ignore_broken = false)
      EXCLUDES(mu_);
  // Loads one extent, whichever is next. False when none waits, or the threads are to stop.
  bool load_next(std::unique_ptr<ArrivingExtent>* encoded) EXCLUDES(mu_);
  // Whether pages are still on their way.
  bool loading() const EXCLUDES(mu_);
  // Whether pages are still on their way, or could not be loaded. Without a lock.
  bool incomplete() const override {
    return (gate_.load(std::memory_order_acquire) & kIncomplete) != 0;
  }
  struct LoadProgress {
    uint64_t total_bytes = 0;
    uint64_t pending_bytes = 0;
    uint64_t dropped_bytes = 0;  // let go of before they were loaded
    uint64_t failed_bytes = 0;
  };
  LoadProgress load_progress() const EXCLUDES(mu_);

  // Sharing. A name for this file in its process, and its share for a child that is about to be
  // forked.
  uint64_t id() const { return id_; }
  void lease_to_child(InheritedFile* inherited) EXCLUDES(mu_);
  // A reference of the caller on each page becomes a lease of another process, or is one no more.
  Status begin_lease(FileRange range) EXCLUDES(mu_);
  Status end_lease(FileRange range) EXCLUDES(mu_);
  // Ends a lease and drops its reference.
  Status drop_lease(FileRange range) EXCLUDES(mu_);
  // In the child: `heir` has the leases, and answers from here on.
  // REQUIRES: forked(), and no other thread yet.
  void inherit(std::shared_ptr<PeerFile> heir) { heir_ = std::move(heir); }
  // nullptr, but in a forked child that has become a peer.
  const std::shared_ptr<PeerFile>& heir() const { return heir_; }

  // Row J7. One reference on each page of `range` that came from the image has found its owner.
  Status adopt(FileRange range) EXCLUDES(mu_);
  std::vector<std::pair<FileRange, uint32_t>> unadopted() const EXCLUDES(mu_);
  uint64_t unadopted_bytes() const EXCLUDES(mu_);  // of pages with such references
  // Drops the references that nobody adopted. The bytes of the pages that had any.
  Result<uint64_t> drop_unadopted() EXCLUDES(mu_);

  // Section I. Returns when the file is closed, whoever closes it.
  Status close() EXCLUDES(mu_);
  // close() for when a later step of construction failed: an adopted descriptor stays open.
  void abandon() EXCLUDES(mu_);
  // After close(): lets go of the mapping, which lives on in whoever holds chunks().
  // REQUIRES: no other thread is between a map() and taking its own share of chunks().
  void release_mapping() { chunks_.reset(); }
  bool closed() const { return (gate_.load(std::memory_order_acquire) & kClosed) != 0; }
  bool forked() const { return generation_ != process_generation(); }
  // For handles: whether they can be used, in this process.
  Status check_usable() const override {
    return discards_elsewhere() ? heir_->check_usable() : check_open();
  }
  int fd() const { return file_->fd(); }
  const MemoryFileOptions& options() const { return options_; }
  DelayedEviction delayed_eviction() const { return options_.delayed_eviction; }

  // For LiveFiles only.
  bool begin_use() EXCLUDES(mu_);  // false if closed; until end_use(), close() waits
  void end_use() EXCLUDES(mu_);
  Status start_threads() EXCLUDES(thread_mu_, mu_);
  void stop_threads() EXCLUDES(thread_mu_, mu_);
  void restart_threads() EXCLUDES(thread_mu_, mu_);  // a failure becomes a warning
  void use_loaders(unsigned count) EXCLUDES(thread_mu_);

  // For tests (pgalloc.testing).
  std::optional<std::string> verify() const EXCLUDES(mu_);
  void pause_reclaimer() EXCLUDES(mu_);
  void resume_reclaimer() EXCLUDES(mu_);
  void start_reclaim_log() EXCLUDES(mu_);
  std::vector<FileRange> reclaim_log() const EXCLUDES(mu_);
  void stop_reclaim_log() EXCLUDES(mu_);
  Clock& clock() { return clock_; }
  void use_real_clock() EXCLUDES(mu_);  // and forget what a manual one said about the next scan
  int load_waiters() const { return load_waiters_; }  // threads that need pages right now
  int reclaim_waiters() const EXCLUDES(mu_);          // that wait until nothing is reclaimable
  size_t bookkeeping_bytes() const EXCLUDES(mu_);

 private:
  // Marks a call that uses the descriptor without mu_, so that close() waits for it.
  class Operation;
  class LoadWaiter;
  struct ScanSegment;

  MemoryFile(std::unique_ptr<BackingFile> file, std::shared_ptr<ChunkMap> chunks,
             const MemoryFileOptions& options);
  ~MemoryFile() override;
  static void destroy(MemoryFile* file);

  // Why calls may not proceed. Checking forked() comes before taking any lock.
  Status check_open() const;
  Status begin_operation(std::optional<Operation>& operation) const EXCLUDES(mu_);
  Result<char*> map_slow(FileRange range);
  void map_executable_once();  // row A5

  // allocate.cc
  Result<FileRange> reserve(const AllocateRequest& request, bool may_wait, bool* must_wait,
                            bool* recycled) EXCLUDES(mu_);
  Result<FileRange> place(const AllocateRequest& request) REQUIRES(mu_);
  Status prepare(const AllocateRequest& request, FileRange range, bool recycled) EXCLUDES(mu_);
  bool reclaim_pending() const REQUIRES(mu_);

  // threads.cc
  Status start_reclaimer() REQUIRES(thread_mu_) EXCLUDES(mu_);
  void stop_reclaimer() REQUIRES(thread_mu_) EXCLUDES(mu_);
  void start_loaders() REQUIRES(thread_mu_) EXCLUDES(mu_);
  void stop_loaders() REQUIRES(thread_mu_);

  // load.cc
  void load_loop() EXCLUDES(mu_);
  void stand_back() REQUIRES(mu_);
  std::unique_ptr<ArrivingExtent> take_extent(uint64_t waiting) REQUIRES(mu_);
  // Reads the extent; an unencoded one is brought in at once. What is left needs decoding.
  std::unique_ptr<ArrivingExtent> fetch(std::unique_ptr<ArrivingExtent> extent) EXCLUDES(mu_);
  void deliver(ArrivingExtent& extent, const char* raw) EXCLUDES(mu_);
  void fail_arrival(ArrivingExtent& extent, Status status) EXCLUDES(mu_);
  void pending_changed() REQUIRES(mu_);
  void settle_leaving(const std::vector<FileRange>& taken, bool gone) REQUIRES(mu_);

  // reclaim.cc
  void reclaim_loop() EXCLUDES(mu_);
  bool wait_for_waste(size_t& ranges_until_linger) REQUIRES(mu_);
  void linger() REQUIRES(mu_);
  bool release_pages(FileRange range) EXCLUDES(mu_);
  Status drop_ref(FileRange range) REQUIRES(mu_);
  void wake_reclaimer() REQUIRES(mu_);
  void warn(std::string message) REQUIRES(mu_);

  // discard.cc
  struct DiscardBatch;
  bool take_run(FileRange range, DiscardBatch& batch) REQUIRES(mu_);
  void take_discards(DiscardBatch& batch) REQUIRES(mu_);
  std::vector<FileRange> next_unpinned(uint64_t& from, bool waiting) const REQUIRES(mu_);
  uint64_t punch_uncounted(FileRange run, const CommitProbe& probe) EXCLUDES(mu_);
  uint64_t punch_discards(DiscardBatch& batch) EXCLUDES(mu_);
  void settle_discards(const DiscardBatch& batch, bool mark) REQUIRES(mu_);
  DiscardQueue& queue_of(const Discardable& entry) REQUIRES(mu_) {
    return entry.queue == nullptr ? *queues_.front() : *entry.queue;
  }
  DiscardQueue* oldest_queue() const REQUIRES(mu_);
  bool may_discard() const REQUIRES(mu_);
  void wait_for_discards(FileRange range) REQUIRES(mu_);

  // update_usage.cc
  void disturb(FileRange range) REQUIRES(mu_);
  bool nothing_to_count(uint64_t stored_bytes) const REQUIRES(mu_);
  Status scan(const std::vector<uint32_t>* memcg_ids) REQUIRES(scan_mu_) EXCLUDES(mu_);
  std::vector<ScanSegment> collect(uint64_t from, const std::vector<uint32_t>* memcg_ids) const
      REQUIRES(mu_);
  void apply(const std::vector<FileRange>& runs, const std::vector<uint32_t>* memcg_ids)
      EXCLUDES(mu_);

  const MemoryFileOptions options_;
  const uint64_t id_;
  const uint32_t generation_ = process_generation();
  const std::unique_ptr<BackingFile> file_;
  std::shared_ptr<ChunkMap> chunks_;
  const uint64_t capacity_;
  Ledger ledger_;
  const std::shared_ptr<Evictables> evictables_ = std::make_shared<Evictables>();
  Clock clock_;
  std::shared_ptr<PeerFile> heir_;
  static constexpr uint8_t kClosed = 1;
  static constexpr uint8_t kIncomplete = 2;  // pages are pending
  std::atomic<uint8_t> gate_{0};
  std::atomic<bool> abandoned_{false};

  mutable Mutex mu_{LockRank::kMemoryFile};
  PageStates pages_ GUARDED_BY(mu_){ledger_};
  MemoryFileStats stats_ GUARDED_BY(mu_);
  std::vector<std::string> warnings_ GUARDED_BY(mu_);
  mutable uint64_t operations_ GUARDED_BY(mu_) = 0;
  mutable CondVar operations_ended_;
  bool close_finished_ GUARDED_BY(mu_) = false;

  // Discarding.
  std::vector<std::shared_ptr<DiscardQueue>> queues_ GUARDED_BY(mu_){
      std::make_shared<DiscardQueue>(DiscardPolicy::kOldest)};  // the first is the file's own
  RangeSet discarding_ GUARDED_BY(mu_);
  std::atomic<int> discards_under_way_{0};
  int discards_held_ GUARDED_BY(mu_) = 0;
  CondVar discard_ended_;

  // Loading an image. While pages wait or arrive, image_ is there.
  std::shared_ptr<const ImageFile> image_ GUARDED_BY(mu_);
  std::vector<Status> load_errors_ GUARDED_BY(mu_);
  uint64_t load_cursor_ GUARDED_BY(mu_) = 0;
  CondVar pending_changed_;
  std::atomic<int> load_waiters_{0};  // need pages now: loaders stand back
  unsigned loader_count_ GUARDED_BY(thread_mu_) = 0;
  std::vector<std::thread> loaders_ GUARDED_BY(thread_mu_);
  std::atomic<bool> loaders_stop_{false};

  // The reclaimer.
  Mutex thread_mu_{LockRank::kThread};
  std::unique_ptr<std::thread> reclaimer_ GUARDED_BY(thread_mu_);
  std::atomic<pid_t> reclaimer_id_{0};
  CondVar reclaimer_work_;
  CondVar waste_shrank_;
  bool reclaimer_runs_ GUARDED_BY(mu_) = false;
  bool reclaimer_stops_ GUARDED_BY(mu_) = false;
  bool reclaimer_sleeps_ GUARDED_BY(mu_) = false;
  bool evictions_due_ GUARDED_BY(mu_) = false;  // something became evictable since it last slept
  int reclaimer_pauses_ GUARDED_BY(mu_) = 0;
  int reclaim_waiters_ GUARDED_BY(mu_) = 0;  // somebody waits: do not linger
  std::optional<std::vector<FileRange>> reclaim_log_ GUARDED_BY(mu_);

  // The commit scan.
  Mutex scan_mu_{LockRank::kScan};
  std::atomic<bool> full_scan_runs_{false};
  bool scanning_ GUARDED_BY(mu_) = false;
  RangeSet disturbed_ GUARDED_BY(mu_);
  uint64_t changes_ GUARDED_BY(mu_) = 0;  // allocations, decommits and releases so far
  uint64_t scanned_changes_ GUARDED_BY(mu_) = UINT64_MAX;  // changes_ and stored bytes as the last
  uint64_t scanned_bytes_ GUARDED_BY(mu_) = 0;             // full, undisturbed scan found them
  std::chrono::nanoseconds next_scan_ GUARDED_BY(mu_){0};
};

}  // namespace pgalloc
