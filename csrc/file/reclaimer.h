// Purpose: returns freed pages to the kernel, on a thread of its own (section F).
//
// Thread safety: any thread. start() and stop() are externally synchronised (the registry's lock over
// threads).
//
// Invariants
//   1. A range that was taken is punched without the lock, and is nothing else's until it is settled.
//   2. Pages that could be neither punched nor zeroed are quarantined: they are never used again.
//   3. Of a huge page that is used in part, the kernel is advised against before anything is punched: else its
//      own thread (khugepaged) would make it whole again, out of memory that is in no account.
//   4. The thread sleeps only while nothing can be taken; before that it starts due evictions (row F5).
//   5. Pages that may be recycled wait as far as the budget goes (row F6), and parts of huge pages for the rest of
//      theirs (row F7), unless something waits for them to be gone, evictions are due, or the memory limits leave
//      less room than that; for the rest they are punched at once.
//   6. Pages that were punched and are in memory still are punched again: see UnsplitPages.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "backing/backing_file.h"
#include "backing/chunk_map.h"
#include "file/evictables.h"
#include "file/file_state.h"
#include "file/part_delay.h"
#include "file/release_budget.h"
#include "file/unsplit_pages.h"

namespace pgalloc {

class Reclaimer {
 public:
  using Deadline = std::optional<std::chrono::steady_clock::time_point>;

  Reclaimer(FileState& state, BackingFile& file, ChunkMap& chunks, Evictables& evictables,
            bool manual_zeroing)
      : state_(state),
        file_(file),
        chunks_(chunks),
        evictables_(evictables),
        manual_zeroing_(manual_zeroing) {}
  Reclaimer(const Reclaimer&) = delete;
  Reclaimer& operator=(const Reclaimer&) = delete;

  Status start() EXCLUDES(file_lock);
  void stop() EXCLUDES(file_lock);

  // There may be something to take now. `freed_bytes` have reached 0 references.
  void wake() REQUIRES(file_lock);
  void freed(uint64_t bytes) REQUIRES(file_lock) {
    if (bytes == 0) return;
    state_.stats.freed_bytes += bytes;
    wake_if_due();
  }
  // There is waste that was none before.
  void wake_if_due() REQUIRES(file_lock) {
    if (has_news()) wake();
  }
  // Row F6. Pages for `bytes` were asked for that are written in full at once.
  void asked(uint64_t bytes) REQUIRES(file_lock);
  // More is used: less may wait.
  void used_more() REQUIRES(file_lock) {
    if (kept_until_change_ == 0) return;
    const uint64_t held = state_.pages.used_bytes() + state_.pages.recyclable_bytes();
    if (held > budget_.most_used()) wake();
  }
  // Memory is short: nothing waits from here on, for a while. What went until the deadline.
  uint64_t release_kept(std::chrono::steady_clock::time_point deadline) REQUIRES(file_lock);
  // Row F5: evictions start when there is nothing else to do.
  void evict_when_idle() REQUIRES(file_lock);

  // Whether freed pages are on their way to the kernel.
  bool pending() const REQUIRES(file_lock);
  // Waits until some of them have got there, or no more will.
  void wait_for_progress() REQUIRES(file_lock);
  // Waits for all of them. False when the deadline passed first.
  bool wait_until_done(Deadline deadline) REQUIRES(file_lock);
  // The file was closed: its pages are forgotten, and what waits for them goes on.
  void clear() REQUIRES(file_lock);
  void notify_waiters() { waste_shrank_.notify_all(); }
  // Waste is used again: there may be nothing left to wait for, and parts of huge pages that were whole before.
  void waste_was_recycled() REQUIRES(file_lock) {
    if (waiters_ > 0) waste_shrank_.notify_all();
    wake_if_due();
  }

  enum class Release : uint8_t {
    kPunched,  // they read as zero; the kernel has them, unless it could not split a huge page
    kZeroed,   // they read as zero, in memory
    kFailed,
  };
  Release release_pages(FileRange range) EXCLUDES(file_lock);

  // What is broken of the invariants.
  std::optional<std::string> verify() const REQUIRES(file_lock);

  // For tests.
  void pause() EXCLUDES(file_lock);
  void resume() EXCLUDES(file_lock);
  int waiters() const EXCLUDES(file_lock);      // that wait until nothing is reclaimable
  uint64_t sleeps() const EXCLUDES(file_lock);  // how often the thread went to sleep
  void start_log() EXCLUDES(file_lock);
  void stop_log() EXCLUDES(file_lock);
  std::vector<FileRange> log() const EXCLUDES(file_lock);

 private:
  void run() EXCLUDES(file_lock);
  enum class Next : uint8_t {
    kPunch,
    kAskForRoom,  // whether the memory limits leave room for what is kept, beside itself
    kEnd,
  };
  // After coalescing, what has gathered is worked off at once.
  Next wait_for_waste(size_t& ranges_until_coalesce) REQUIRES(file_lock);
  void sleep() REQUIRES(file_lock);
  // Whether anything is to go now: pages that may be recycled and exceed the budget, or parts of huge pages.
  bool has_due() REQUIRES(file_lock) { return has_excess() || has_due_part(); }
  bool has_excess() REQUIRES(file_lock);
  bool has_due_part() REQUIRES(file_lock);
  // Whether there is so much waste that the sleeping thread has to wake up for it.
  bool has_news() const REQUIRES(file_lock) {
    return state_.pages.recyclable_bytes() > kept_until_change_ ||
           parts_.is_news(state_.pages.waste_part_bytes());
  }
  // Whether something waits for all of it to be gone.
  bool is_urgent() const REQUIRES(file_lock) { return waiters_ > 0 || evictions_due_; }
  std::optional<uint64_t> due_parts_below(PartDelay::Time now) REQUIRES(file_lock);
  uint64_t kept_bytes() REQUIRES(file_lock);
  // What the limits have to leave room for: what is kept, and the parts that may gather.
  uint64_t room_needed() REQUIRES(file_lock);
  Release punch_or_zero(FileRange range) EXCLUDES(file_lock);
  void coalesce() REQUIRES(file_lock);
  UnsplitPages::Entry take() REQUIRES(file_lock);
  bool has_due_unsplit() const REQUIRES(file_lock);
  using Ranges = std::vector<FileRange>;
  Ranges left_of(FileRange range) const EXCLUDES(file_lock);
  bool hold_back(FileRange range, int punches, const Ranges& left) REQUIRES(file_lock);
  void settle(FileRange range, bool clean) REQUIRES(file_lock);
  // What wait_until_done() waits for.
  uint64_t bytes_on_their_way() const REQUIRES(file_lock) {
    return state_.pages.releasing_bytes() - unsplit_.stubborn_bytes();
  }
  void notify_progress() REQUIRES(file_lock) {
    if (waiters_ > 0 || pauses_ > 0) waste_shrank_.notify_all();
  }

  FileState& state_;
  BackingFile& file_;
  ChunkMap& chunks_;
  Evictables& evictables_;
  const bool manual_zeroing_;
  std::unique_ptr<std::thread> thread_;
  std::atomic<pid_t> thread_id_{0};
  CondVar work_;
  CondVar waste_shrank_;
  bool runs_ GUARDED_BY(file_lock) = false;
  bool stops_ GUARDED_BY(file_lock) = false;
  bool sleeps_ GUARDED_BY(file_lock) = false;
  uint64_t sleep_count_ GUARDED_BY(file_lock) = 0;
  bool evictions_due_ GUARDED_BY(file_lock) = false;  // since it last slept
  int pauses_ GUARDED_BY(file_lock) = 0;
  int waiters_ GUARDED_BY(file_lock) = 0;  // while there are any, it does not coalesce
  ReleaseBudget budget_ GUARDED_BY(file_lock);
  // While it sleeps until the budget changes: that budget. So much may wait without a word.
  uint64_t kept_until_change_ GUARDED_BY(file_lock) = 0;
  // The limits leave room for so much waste, as was found not long ago.
  uint64_t room_ GUARDED_BY(file_lock) = 0;
  std::chrono::steady_clock::time_point room_until_ GUARDED_BY(file_lock){};
  PartDelay parts_ GUARDED_BY(file_lock);
  UnsplitPages unsplit_ GUARDED_BY(file_lock);
  std::optional<std::vector<FileRange>> log_ GUARDED_BY(file_lock);
};

}  // namespace pgalloc
