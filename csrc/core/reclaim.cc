// Section F: the thread that returns freed pages to the kernel.
#include <algorithm>

#include "core/memory_file.h"
#include "os/thread.h"

namespace pgalloc {
namespace {

// Row F1: one punch keeps the file's inode lock for about 20 ms per 128 MiB.
constexpr uint64_t kPunchBytesMax = uint64_t{128} << 20;

// How long freed pages gather before a batch of them is punched. One punch costs about as much for
// a page as for a run of pages, and pages freed one by one become runs; and an owner that asks for
// the same pages again at once gets them back without the kernel (PageStates::recycle).
constexpr std::chrono::microseconds kLinger{200};

}  // namespace

void MemoryFile::wake_reclaimer() {
  if (!reclaimer_sleeps_) return;
  reclaimer_sleeps_ = false;
  reclaimer_work_.notify_all();
}

// False when the thread is to end. After a linger, what has gathered is worked off without another.
bool MemoryFile::wait_for_waste(size_t& ranges_until_linger) {
  while (!reclaimer_stops_) {
    if (reclaimer_pauses_ == 0 && pages_.next_waste()) {
      if (ranges_until_linger == 0) {
        linger();
        ranges_until_linger = pages_.waste_ranges();
        continue;
      }
      --ranges_until_linger;
      return true;
    }
    // Row F5: idle, so memory that costs nothing to let go of may go.
    if (evictions_due_) {
      evictions_due_ = false;
      evictables_->start_all();
    }
    reclaimer_sleeps_ = true;
    reclaimer_work_.wait(mu_);
    reclaimer_sleeps_ = false;
    ranges_until_linger = 0;
  }
  return false;
}

void MemoryFile::linger() {
  const auto until = std::chrono::steady_clock::now() + kLinger;
  while (!reclaimer_stops_ && reclaim_waiters_ == 0) {
    if (!reclaimer_work_.wait_until(mu_, until)) return;
  }
}

void MemoryFile::reclaim_loop() {
  reclaimer_id_ = os::thread_id();
  MutexLock lock(mu_);
  size_t ranges_until_linger = 0;
  while (wait_for_waste(ranges_until_linger)) {
    const std::optional<FileRange> range = pages_.take_waste(kPunchBytesMax);
    if (reclaim_log_) reclaim_log_->push_back(*range);

    lock.unlock();
    const bool clean = release_pages(*range);
    lock.lock();

    disturb(*range);
    ++changes_;
    ++stats_.punches;
    if (clean) {
      stats_.punched_bytes += range->length();
      pages_.finish_release(*range);
    } else {
      stats_.lost_bytes += range->length();
      pages_.abandon_release(*range);
    }
    if (reclaim_waiters_ > 0 || reclaimer_pauses_ > 0) waste_shrank_.notify_all();
  }
}

// Makes the pages read as zero, and gives them back if that is possible at all. False when neither
// could be done.
bool MemoryFile::release_pages(FileRange range) {
  FileRange inside = range;
  if (options_.manual_zeroing) {
    // Row F3: pages are zeroed when they are handed out, so only what is cheap is given back.
    inside = {align_up(range.start, kHugePageSize), align_down(range.end, kHugePageSize)};
    if (inside.empty()) return true;
  }
  const Status punched = file_->punch(inside);
  if (punched.ok()) return true;
  Status zeroed;
  if (!options_.manual_zeroing) zeroed = file_->write_zeros(range);

  MutexLock lock(mu_);
  ++stats_.punch_failures;
  warn("pages could not be given back (" + std::string(punched.call()) + ": errno " +
       std::to_string(punched.error_number()) + ")" +
       (zeroed.ok() ? "; they stay in memory" : " nor zeroed; they are not used again"));
  return zeroed.ok();
}

bool MemoryFile::wait_for_reclaim(Deadline deadline) {
  if (forked()) return false;
  MutexLock lock(mu_);
  while (pages_.waste_bytes() + pages_.releasing_bytes() > 0) {
    ++reclaim_waiters_;
    reclaimer_work_.notify_all();
    bool in_time = true;
    if (!deadline) {
      waste_shrank_.wait(mu_);
    } else {
      in_time = waste_shrank_.wait_until(mu_, *deadline);
    }
    --reclaim_waiters_;
    if (!in_time) return pages_.waste_bytes() + pages_.releasing_bytes() == 0;
  }
  return true;
}

void MemoryFile::pause_reclaimer() {
  MutexLock lock(mu_);
  ++reclaimer_pauses_;
  while (pages_.releasing_bytes() > 0) waste_shrank_.wait(mu_);
}

void MemoryFile::resume_reclaimer() {
  MutexLock lock(mu_);
  --reclaimer_pauses_;
  wake_reclaimer();
}

void MemoryFile::start_reclaim_log() {
  MutexLock lock(mu_);
  reclaim_log_.emplace();
}

std::vector<FileRange> MemoryFile::reclaim_log() const {
  MutexLock lock(mu_);
  return reclaim_log_.value_or(std::vector<FileRange>{});
}

void MemoryFile::stop_reclaim_log() {
  MutexLock lock(mu_);
  reclaim_log_.reset();
}

}  // namespace pgalloc
