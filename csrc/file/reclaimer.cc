#include "file/reclaimer.h"

#include <algorithm>
#include <new>
#include <string>
#include <system_error>

#include "backing/commit_probe.h"
#include "base/reserve.h"
#include "guard/commit_gate.h"
#include "os/thread.h"

namespace pgalloc {
namespace {

// Row F1: one punch keeps the file's inode lock for about 20 ms per 128 MiB.
constexpr uint64_t kPunchBytesMax = uint64_t{128} << 20;

// How long memory is taken to be short after it was.
constexpr std::chrono::seconds kShortage{1};

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

Reclaimer::Next Reclaimer::wait_for_waste(size_t& ranges_until_coalesce) {
  while (!stops_) {
    if (has_due_unsplit()) return Next::kPunch;
    if (pauses_ == 0 && has_due()) {
      if (ranges_until_coalesce == 0) {
        coalesce();
        ranges_until_coalesce = state_.pages.waste_ranges();
        continue;
      }
      --ranges_until_coalesce;
      return Next::kPunch;
    }
    if (pauses_ == 0 && room_needed() > room_) return Next::kAskForRoom;
    // Row F5: idle, so memory that costs nothing to let go of may go.
    if (evictions_due_) {
      evictions_due_ = false;
      with_reserve([this] { evictables_.start_all(); });
    }
    sleep();
    ranges_until_coalesce = 0;
  }
  return Next::kEnd;
}

void Reclaimer::sleep() {
  std::optional<std::chrono::steady_clock::time_point> until;
  if (pauses_ == 0) until = unsplit_.next_due();
  if (state_.pages.recyclable_bytes() > 0 && pauses_ == 0) kept_until_change_ = kept_bytes();
  if (kept_until_change_ > 0) {
    until = std::min(until.value_or(budget_.next_change()), budget_.next_change());
  }
  if (const auto due = parts_.next_due(); due && pauses_ == 0) {
    until = std::min(until.value_or(*due), *due);
  }
  sleeps_ = true;
  ++sleep_count_;
  if (until) {
    (void)state_.wait_until(work_, *until);
  } else {
    state_.wait(work_);
  }
  sleeps_ = false;
  kept_until_change_ = 0;
}

uint64_t Reclaimer::kept_bytes() {
  if (is_urgent()) return 0;
  return budget_.bytes(state_.pages.used_bytes(), std::chrono::steady_clock::now());
}

bool Reclaimer::has_excess() {
  return state_.pages.next_waste() && state_.pages.recyclable_bytes() > kept_bytes();
}

bool Reclaimer::has_due_part() {
  const auto now = std::chrono::steady_clock::now();
  const std::optional<uint64_t> below = due_parts_below(now);
  if (!below) return false;
  if (state_.pages.next_waste_part(*below)) return true;
  parts_.wait_anew(now);
  return false;
}

std::optional<uint64_t> Reclaimer::due_parts_below(PartDelay::Time now) {
  return parts_.due_below(state_.pages.waste_part_bytes(), is_urgent() || budget_.refuses(now),
                          now);
}

uint64_t Reclaimer::room_needed() {
  const auto now = std::chrono::steady_clock::now();
  if (now >= room_until_) room_ = 0;
  if (is_urgent() || budget_.refuses(now)) return 0;
  return std::min(state_.pages.recyclable_bytes(), kept_bytes()) +
         (state_.pages.waste_part_bytes() > 0 ? PartDelay::kRoom : 0);
}

void Reclaimer::coalesce() {
  const auto until = std::chrono::steady_clock::now() + kCoalesce;
  while (!stops_ && waiters_ == 0) {
    if (!state_.wait_until(work_, until)) return;
  }
}

bool Reclaimer::has_due_unsplit() const {
  const auto due = unsplit_.next_due();
  return due && pauses_ == 0 && *due <= std::chrono::steady_clock::now();
}

// REQUIRES: wait_for_waste() has just returned kPunch.
UnsplitPages::Entry Reclaimer::take() {
  if (pauses_ == 0) {
    if (const auto entry = unsplit_.take(std::chrono::steady_clock::now())) return *entry;
  }
  std::optional<FileRange> range;
  if (has_excess()) {
    range = state_.pages.take_waste(kPunchBytesMax);
  } else {
    range = state_.pages.take_waste_part(*due_parts_below(std::chrono::steady_clock::now()));
    parts_.taken(*range);
  }
  return {.range = *range, .punches = 0, .due = {}};
}

void Reclaimer::run() {
  thread_id_ = os::thread_id();
  FileLock lock(state_);
  size_t ranges_until_coalesce = 0;
  while (true) {
    const Next next = wait_for_waste(ranges_until_coalesce);
    if (next == Next::kEnd) return;
    if (next == Next::kAskForRoom) {
      room_ = room_needed();
      room_until_ = std::chrono::steady_clock::now() + ReleaseBudget::kSlice;
      const uint64_t room = room_;
      lock.unlock();
      const bool lacks = commit_gate().lacks(room);
      lock.lock();
      if (lacks) budget_.refuse_until(std::chrono::steady_clock::now() + kShortage);
      continue;
    }
    const auto [range, punches, due] = take();
    if (log_) log_->push_back(range);
    const bool splits = state_.pages.is_partial(range);

    lock.unlock();
    if (splits) {
      chunks_.advise(
          {align_down(range.start, huge_page_size()), align_up(range.end, huge_page_size())},
          /*huge=*/false);
    }
    const Release release = release_pages(range);
    const Ranges left = release == Release::kPunched ? left_of(range) : Ranges{};
    lock.lock();

    if (left.empty() || !hold_back(range, punches + 1, left)) {
      settle(range, release != Release::kFailed);
    }
  }
}

// What is in memory after it was punched.
Reclaimer::Ranges Reclaimer::left_of(FileRange range) const try {
  CommitProbe probe(file_, chunks_);
  Ranges left;
  if (manual_zeroing_ || probe.count(range).value_or(0) == 0) return left;
  (void)probe.find_runs(range, left);
  return left;
} catch (const std::bad_alloc&) {
  return {};
}

// False if there is no room for more.
bool Reclaimer::hold_back(FileRange range, int punches, const Ranges& left) try {
  for (const FileRange& part : left) state_.pages.mark_unreleased(part);
  if (!unsplit_.add(range, punches, std::chrono::steady_clock::now())) return false;
  notify_progress();
  return true;
} catch (const std::bad_alloc&) {
  return false;
}

void Reclaimer::settle(FileRange range, bool clean) {
  state_.changes.note(range);
  ++state_.stats.punches;
  if (clean) {
    state_.stats.punched_bytes += range.length();
    with_reserve([&]() NO_THREAD_SAFETY_ANALYSIS { state_.pages.finish_release(range); });
  } else {
    state_.stats.quarantined_bytes += range.length();
    state_.pages.quarantine(range);
  }
  notify_progress();
}

// Blocks of a file system that has a bound of its own are not kept from others.
void Reclaimer::asked(uint64_t bytes) {
  if (file_.needs_blocks()) return;
  budget_.asked(bytes, state_.pages.used_bytes(), std::chrono::steady_clock::now());
}

uint64_t Reclaimer::release_kept(std::chrono::steady_clock::time_point deadline) {
  const bool any_kept = room_needed() > 0;
  budget_.refuse_until(std::chrono::steady_clock::now() + kShortage);
  if (!any_kept || !runs_ || pauses_ > 0) return 0;
  const uint64_t before = state_.pages.waste_bytes();
  (void)wait_until_done(deadline);
  const uint64_t left = state_.pages.waste_bytes() + state_.pages.releasing_bytes();
  return before - std::min(before, left);
}

void Reclaimer::clear() {
  unsplit_.clear();
  waste_shrank_.notify_all();
}

// To tell of an error takes memory.
Reclaimer::Release Reclaimer::release_pages(FileRange range) {
  return with_reserve([&] { return punch_or_zero(range); });
}

Reclaimer::Release Reclaimer::punch_or_zero(FileRange range) {
  FileRange inside = range;
  if (manual_zeroing_) {
    // Row F3: pages are zeroed when they are handed out, so only what is cheap is given back.
    inside = {align_up(range.start, huge_page_size()), align_down(range.end, huge_page_size())};
    if (inside.empty()) return Release::kZeroed;
  }
  const Status punched = file_.punch(inside);
  if (punched.ok()) return Release::kPunched;
  Status zeroed;
  if (!manual_zeroing_) zeroed = file_.write_zeros(range);

  FileLock lock(state_);
  state_.warn("pages could not be given back (" + std::string(punched.call()) + ": errno " +
              std::to_string(punched.error_number()) + ")" +
              (zeroed.ok() ? "; they stay in memory" : " nor zeroed; they are not used again"));
  ++state_.stats.punch_failures;
  return zeroed.ok() ? Release::kZeroed : Release::kFailed;
}

// --- Waiting for it ------------------------------------------------------------------------------

bool Reclaimer::pending() const {
  const bool works = runs_ && pauses_ == 0;
  if (works && state_.pages.waste_bytes() + bytes_on_their_way() > 0) return true;
  return state_.pages.releasing_bytes() > unsplit_.bytes();
}

void Reclaimer::wait_for_progress() {
  ++waiters_;
  work_.notify_all();
  state_.wait(waste_shrank_);
  --waiters_;
}

bool Reclaimer::wait_until_done(Deadline deadline) {
  const auto done = [this]() REQUIRES(file_lock) {
    return state_.pages.waste_bytes() + bytes_on_their_way() == 0;
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
  if (state_.pages.releasing_bytes() < unsplit_.bytes()) return "unsplit pages are not taken";
  if (!runs_ && state_.pages.releasing_bytes() > unsplit_.bytes()) {
    return "pages are taken, and no thread runs";
  }
  const bool has_recyclable =
      state_.pages.next_waste() && state_.pages.recyclable_bytes() > kept_until_change_;
  const bool has_parts =
      state_.pages.next_waste_part(UINT64_MAX) && parts_.is_news(state_.pages.waste_part_bytes());
  const bool has_work = evictions_due_ || (pauses_ == 0 && (has_recyclable || has_parts));
  if (sleeps_ && !stops_ && has_work) return "the thread sleeps, and there is something to do";
  return std::nullopt;
}

// --- For tests -----------------------------------------------------------------------------------

void Reclaimer::pause() {
  FileLock lock(state_);
  ++pauses_;
  while (state_.pages.releasing_bytes() > unsplit_.bytes()) state_.wait(waste_shrank_);
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

uint64_t Reclaimer::sleeps() const {
  FileLock lock(state_);
  return sleep_count_;
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
