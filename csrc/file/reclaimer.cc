#include "file/reclaimer.h"

#include <algorithm>
#include <string>
#include <system_error>

#include "os/thread.h"

namespace pgalloc {
namespace {

// Row F1: one punch keeps the file's inode lock for about 20 ms per 128 MiB.
constexpr uint64_t kPunchBytesMax = uint64_t{128} << 20;

// How long freed pages gather before a batch of them is punched. One punch costs about as much for
// a page as for a run of pages, and pages freed one by one become runs; and an owner that asks for
// the same pages again at once gets them back without the kernel (PageStates::recycle).
constexpr std::chrono::microseconds kCoalesce{200};

}  // namespace

// --- The thread ----------------------------------------------------------------------------------

Status Reclaimer::start() {
  if (thread_ != nullptr) return {};
  FileLock lock(state_);
  if (state_.closed()) return {};
  stops_ = false;
  try {
    const os::WithoutSignals quiet;
    thread_ = std::make_unique<std::thread>([this] { run(); });
  } catch (const std::system_error& error) {
    return Status::system_error(error.code().value(), "pthread_create");
  }
  runs_ = true;
  return {};
}

void Reclaimer::stop() {
  if (thread_ == nullptr) return;
  {
    FileLock lock(state_);
    stops_ = true;
    work_.notify_all();
  }
  thread_->join();
  os::wait_until_gone(thread_id_);
  thread_.reset();
  FileLock lock(state_);
  runs_ = false;
  waste_shrank_.notify_all();
}

void Reclaimer::wake() {
  if (!sleeps_) return;
  sleeps_ = false;
  work_.notify_all();
}

void Reclaimer::evict_when_idle() {
  if (evictions_due_) return;
  evictions_due_ = true;
  wake();
}

bool Reclaimer::wait_for_waste(size_t& ranges_until_coalesce) {
  while (!stops_) {
    if (pauses_ == 0 && state_.pages.next_waste()) {
      if (ranges_until_coalesce == 0) {
        coalesce();
        ranges_until_coalesce = state_.pages.waste_ranges();
        continue;
      }
      --ranges_until_coalesce;
      return true;
    }
    // Row F5: idle, so memory that costs nothing to let go of may go.
    if (evictions_due_) {
      evictions_due_ = false;
      evictables_.start_all();
    }
    sleeps_ = true;
    state_.wait(work_);
    sleeps_ = false;
    ranges_until_coalesce = 0;
  }
  return false;
}

void Reclaimer::coalesce() {
  const auto until = std::chrono::steady_clock::now() + kCoalesce;
  while (!stops_ && waiters_ == 0) {
    if (!state_.wait_until(work_, until)) return;
  }
}

void Reclaimer::run() {
  thread_id_ = os::thread_id();
  FileLock lock(state_);
  size_t ranges_until_coalesce = 0;
  while (wait_for_waste(ranges_until_coalesce)) {
    const std::optional<FileRange> range = state_.pages.take_waste(kPunchBytesMax);
    if (log_) log_->push_back(*range);
    const bool splits = state_.pages.is_partial(*range);

    lock.unlock();
    if (splits) {
      chunks_.advise(
          {align_down(range->start, huge_page_size()), align_up(range->end, huge_page_size())},
          /*huge=*/false);
    }
    const bool clean = release_pages(*range);
    lock.lock();

    settle(*range, clean);
  }
}

void Reclaimer::settle(FileRange range, bool clean) {
  state_.changes.note(range);
  ++state_.stats.punches;
  if (clean) {
    state_.stats.punched_bytes += range.length();
    state_.pages.finish_release(range);
  } else {
    state_.stats.quarantined_bytes += range.length();
    state_.pages.quarantine(range);
  }
  if (waiters_ > 0 || pauses_ > 0) waste_shrank_.notify_all();
}

bool Reclaimer::release_pages(FileRange range) {
  FileRange inside = range;
  if (manual_zeroing_) {
    // Row F3: pages are zeroed when they are handed out, so only what is cheap is given back.
    inside = {align_up(range.start, huge_page_size()), align_down(range.end, huge_page_size())};
    if (inside.empty()) return true;
  }
  const Status punched = file_.punch(inside);
  if (punched.ok()) return true;
  Status zeroed;
  if (!manual_zeroing_) zeroed = file_.write_zeros(range);

  FileLock lock(state_);
  ++state_.stats.punch_failures;
  state_.warn("pages could not be given back (" + std::string(punched.call()) + ": errno " +
              std::to_string(punched.error_number()) + ")" +
              (zeroed.ok() ? "; they stay in memory" : " nor zeroed; they are not used again"));
  return zeroed.ok();
}

// --- Waiting for it ------------------------------------------------------------------------------

bool Reclaimer::pending() const {
  const bool takes_more = runs_ && pauses_ == 0 && state_.pages.waste_bytes() > 0;
  return takes_more || state_.pages.releasing_bytes() > 0;
}

void Reclaimer::wait_for_progress() {
  ++waiters_;
  work_.notify_all();
  state_.wait(waste_shrank_);
  --waiters_;
}

bool Reclaimer::wait_until_done(Deadline deadline) {
  const auto done = [this]() REQUIRES(file_lock) {
    return state_.pages.waste_bytes() + state_.pages.releasing_bytes() == 0;
  };
  while (!done()) {
    ++waiters_;
    work_.notify_all();
    bool in_time = true;
    if (!deadline) {
      state_.wait(waste_shrank_);
    } else {
      in_time = state_.wait_until(waste_shrank_, *deadline);
    }
    --waiters_;
    if (!in_time) return done();
  }
  return true;
}

std::optional<std::string> Reclaimer::verify() const {
  if (!runs_ && state_.pages.releasing_bytes() > 0) return "pages are taken, and no thread runs";
  const bool has_work = evictions_due_ || (pauses_ == 0 && state_.pages.next_waste());
  if (sleeps_ && !stops_ && has_work) return "the thread sleeps, and there is something to do";
  return std::nullopt;
}

// --- For tests -----------------------------------------------------------------------------------

void Reclaimer::pause() {
  FileLock lock(state_);
  ++pauses_;
  while (state_.pages.releasing_bytes() > 0) state_.wait(waste_shrank_);
}

void Reclaimer::resume() {
  FileLock lock(state_);
  --pauses_;
  wake();
}

int Reclaimer::waiters() const {
  FileLock lock(state_);
  return waiters_;
}

void Reclaimer::start_log() {
  FileLock lock(state_);
  log_.emplace();
}

void Reclaimer::stop_log() {
  FileLock lock(state_);
  log_.reset();
}

std::vector<FileRange> Reclaimer::log() const {
  FileLock lock(state_);
  return log_.value_or(std::vector<FileRange>{});
}

}  // namespace pgalloc
