// Purpose: one file of pages. It puts the components together and keeps what needs several of them:
// construction, decommit, mapping, saving and restoring as a whole, and the end.
//
// Thread safety: every public method may be called from any thread of the process that made the file.
// In a forked child none is called: see FileSeat.
//
// Lock order: registry of files, keepers, caches, scan, the file's lock, then evictables, chunk map, ledger.
//
// Invariant: the components share one FileState and nothing else; whichever needs another is given it
// at construction, in the order in which they are declared here.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backing/backing_file.h"
#include "backing/chunk_map.h"
#include "base/clock.h"
#include "base/process_generation.h"
#include "base/status.h"
#include "file/allocator.h"
#include "file/commit_scanner.h"
#include "file/discarder.h"
#include "file/evictables.h"
#include "file/file_state.h"
#include "file/loader.h"
#include "file/operation.h"
#include "file/options.h"
#include "file/pages.h"
#include "file/reclaimer.h"
#include "file/references.h"
#include "file/registered_file.h"

namespace pgalloc {

class MemoryFile final : public Pages,
                         public RegisteredFile,
                         public std::enable_shared_from_this<MemoryFile> {
 public:
  using Deadline = Reclaimer::Deadline;

  static Result<std::shared_ptr<MemoryFile>> create(const Backing& backing,
                                                    const MemoryFileOptions& options);
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  // --- Pages, for handles ------------------------------------------------------------------------

  Result<FileRange> allocate(const AllocateRequest& request, bool may_wait,
                             bool* must_wait = nullptr) {
    return allocator_.allocate(request, may_wait, must_wait);
  }
  Status inc_ref(FileRange range, uint32_t memcg_id) override {
    return references_.inc_ref(range, memcg_id);
  }
  Status dec_ref(FileRange range) override {
    Status status = references_.dec_ref(range);
    if (lacks_threads_.load(std::memory_order_relaxed)) retry_threads();
    return status;
  }
  Result<bool> has_unique_ref(FileRange range) const override {
    return references_.has_unique_ref(range);
  }
  Status decommit(FileRange range) EXCLUDES(file_lock);
  Status write(uint64_t offset, const char* data, uint64_t size) override EXCLUDES(file_lock);

  // If the range is pending, this loads it or waits for it; where that must not happen,
  // loader().load() is called before.
  Result<char*> map(FileRange range) override {
    if (state_.gate.load(std::memory_order_acquire) == 0 && !range.empty() &&
        range.end <= file_->size() && chunks_->is_mapped(range)) {
      return chunks_->address(range.start);
    }
    return map_slow(range);
  }
  Result<char*> find_mapped(FileRange range) const override;
  std::shared_ptr<ChunkMap> chunks() const override { return chunks_; }
  bool readonly() const override { return false; }
  bool incomplete() const override { return state_.incomplete(); }

  bool is_remote() const override { return false; }
  Status unpin(Discardable& entry) override;
  void pin(Discardable& entry, bool in_place) override { discarder_.pin(entry, in_place); }
  void forget(Discardable& entry) override { discarder_.forget(entry); }
  bool discarding() const override { return discarder_.discarding(); }
  Status end_handle(Discardable& entry) override {
    Status status = references_.end_handle(entry);
    if (lacks_threads_.load(std::memory_order_relaxed)) retry_threads();
    return status;
  }
  Status check_usable() const override { return state_.check_open(); }

  // --- Components --------------------------------------------------------------------------------

  References& references() { return references_; }
  Reclaimer& reclaimer() { return reclaimer_; }
  Discarder& discarder() override { return discarder_; }
  CommitScanner& scanner() { return scanner_; }
  Loader& loader() { return loader_; }
  // Shared, so that a thread that waits for evictions does not keep the file open.
  const std::shared_ptr<Evictables>& evictables() const { return evictables_; }
  const Ledger& ledger() const override { return state_.ledger; }
  // Whether ledger() says anything.
  Status check_accounting() const;
  Clock& clock() { return clock_; }

  // Section F. False when the deadline passed first.
  bool wait_for_reclaim(Deadline deadline) override EXCLUDES(file_lock);
  // Section G.
  Status mark_evictable(Evictables::UserId user, FileRange range) EXCLUDES(file_lock);
  bool should_cache_evictable() const;

  // --- What it is, and what is in it -------------------------------------------------------------

  uint64_t id() const override { return id_; }  // a name for this file in its process
  std::shared_ptr<RegisteredFile> share() override { return weak_from_this().lock(); }
  int fd() const { return file_->fd(); }
  const os::Descriptor& descriptor() const { return file_->descriptor(); }
  uint64_t total_size() const { return file_->size(); }
  uint64_t capacity() const { return capacity_; }
  // The most that can be in use at once.
  uint64_t allocatable_bytes() const {
    return std::min(capacity_, options_.max_allocatable_bytes.value_or(UINT64_MAX));
  }
  const MemoryFileOptions& options() const { return options_; }
  // Whether these pages, which are used, lie in an area for huge ones.
  bool is_for_huge_pages(FileRange range) const EXCLUDES(file_lock);
  // Whether an allocation takes a system call for its pages, which may take long.
  bool prepares(const AllocateRequest& request) const { return allocator_.prepares(request); }
  Result<uint64_t> total_usage() const EXCLUDES(file_lock);
  struct SeenSegment : PageSegment {
    uint64_t huge_bytes;  // of huge_usage()
  };
  std::vector<SeenSegment> segments() const EXCLUDES(file_lock);
  // Bytes of pages in use that the last scan found in huge pages.
  Result<uint64_t> huge_usage() const EXCLUDES(file_lock);
  MemoryFileStats stats() const EXCLUDES(file_lock);
  void warn(std::string message) EXCLUDES(file_lock) {
    FileLock lock(state_);
    state_.warn(std::move(message));
  }
  // Oldest first, and forgotten once taken.
  std::vector<std::string> take_warnings() EXCLUDES(file_lock);

  // --- Section J ---------------------------------------------------------------------------------

  // What an image says about the pages; nothing if not all freed pages were back with the kernel by
  // the deadline.
  struct Capture {
    uint64_t file_size = 0;
    std::vector<PageSegment> segments;  // ascending, all used
  };
  Result<std::optional<Capture>> capture(std::chrono::steady_clock::time_point deadline)
      EXCLUDES(file_lock);
  // For reading the pages themselves. close() waits until it ends.
  struct Access {
    const BackingFile* file = nullptr;
    const ChunkMap* chunks = nullptr;
    std::optional<Operation> operation;
  };
  Status begin_access(Access& access) const EXCLUDES(file_lock);
  // Marks the pages of an image as used, as it says; loader() brings their contents.
  // REQUIRES: this file is not shared yet.
  Status restore(uint64_t file_size, const std::vector<image::Usage>& usage) EXCLUDES(file_lock);
  // From here on, pages of the extents are pending, and `threads` threads of the core load them;
  // encoded extents need threads from outside. REQUIRES: this file is not shared yet.
  Status start_loading(std::shared_ptr<const ExtentSource> source, unsigned threads);

  // --- Section I ---------------------------------------------------------------------------------

  // Returns when the file is closed, by whichever thread.
  Status close() EXCLUDES(file_lock);
  // close() for when a later step of construction failed: an adopted descriptor stays open.
  void roll_back() EXCLUDES(file_lock);
  // After close(): lets go of the mapping, which lives on as long as chunks() are held elsewhere.
  // REQUIRES: no other thread is between a map() and taking its own share of chunks().
  void release_mapping() { chunks_.reset(); }
  bool closed() const { return state_.closed(); }

  // --- For FileRegistry --------------------------------------------------------------------------

  bool begin_use() override EXCLUDES(file_lock);
  void end_use() override EXCLUDES(file_lock);
  Status start_threads() override;
  void stop_threads() override;
  void restart_threads() override;
  void use_loaders(unsigned count) override { loader_.use_threads(count); }
  bool has_unpinned() const override EXCLUDES(file_lock);
  uint64_t release_kept(Time deadline) override EXCLUDES(file_lock);
  void start_evictions_under_pressure() override;

  // --- For Forks ---------------------------------------------------------------------------------

  // Holds the file's lock, in the forking thread: nothing changes between its leases and the fork.
  void lock_for_fork() NO_THREAD_SAFETY_ANALYSIS { state_.mu.lock_unranked(); }
  void unlock_after_fork() NO_THREAD_SAFETY_ANALYSIS { state_.mu.unlock_unranked(); }
  // Around that.
  void stop_keepers_for_fork() { discarder_.before_fork(); }
  void let_keepers_go_on() { discarder_.after_fork_in_parent(); }

  // --- For tests ---------------------------------------------------------------------------------

  std::optional<std::string> verify() const EXCLUDES(file_lock);
  void use_real_clock();  // and forget what a manual one said about the next scan
  size_t bookkeeping_bytes() const EXCLUDES(file_lock);

 private:
  MemoryFile(std::unique_ptr<BackingFile> file, std::shared_ptr<ChunkMap> chunks,
             const MemoryFileOptions& options);
  ~MemoryFile() override = default;
  static void destroy(MemoryFile* file);
  void advise_restored() REQUIRES(file_lock);
  Result<char*> map_slow(FileRange range);
  void map_executable_once();  // row A5
  void retry_threads();

  const MemoryFileOptions options_;
  const uint64_t id_;
  const uint32_t generation_ = process_generation();
  const std::unique_ptr<BackingFile> file_;
  std::shared_ptr<ChunkMap> chunks_;
  const uint64_t capacity_;
  const std::shared_ptr<Evictables> evictables_ = std::make_shared<Evictables>();
  Clock clock_;
  mutable FileState state_{capacity_, options_.accounting};
  Reclaimer reclaimer_;
  Discarder discarder_;
  CommitScanner scanner_;
  Loader loader_;
  References references_;
  Allocator allocator_;
  std::atomic<bool> rolled_back_{false};
  std::atomic<bool> lacks_threads_{false};  // they could not be started again
  bool close_finished_ GUARDED_BY(file_lock) = false;
};

}  // namespace pgalloc
