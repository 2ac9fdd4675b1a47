// Room for what is about to be committed.

#include <algorithm>
#include <chrono>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "guard/guard.h"
#include "guard/progress.h"

namespace pgalloc {

namespace {

// So much may be committed without a sample, as long as there is credit.
constexpr uint64_t kSmall = uint64_t{256} << 10;
// Credit: how much may be committed at most without a look at the limits. A limit that is lowered by
// gigabytes must not find more than that on its way.
constexpr uint64_t kCreditMax = uint64_t{4} << 20;
// The heap, page tables and what the kernel charges in batches grow without asking for room. So much of
// the headroom is kept for them, even if a commit is refused for it.
uint64_t kept_for_the_rest(uint64_t limit) { return std::min(limit / 16, uint64_t{16} << 20); }
// How long a commit waits before it is refused: for freed pages to get to the kernel, and for other
// threads to commit what they reserved.
constexpr std::chrono::seconds kPatience{1};
// What is looked for in one pass.
constexpr std::chrono::milliseconds kPass{4};
// How long freed pages that were kept are given to go, before that.
constexpr std::chrono::milliseconds kReleasePass{1};

}  // namespace

bool Guard::take_credit(uint64_t bytes) {
  const auto wanted = static_cast<int64_t>(bytes);
  return credit_.load(std::memory_order_relaxed) >= wanted &&
         std::chrono::steady_clock::now() < credit_ends_.load(std::memory_order_relaxed) &&
         credit_.fetch_sub(wanted, std::memory_order_relaxed) >= wanted;
}

void Guard::set_credit(uint64_t slack) {
  credit_ends_.store(std::chrono::steady_clock::now() + kPeriod, std::memory_order_relaxed);
  // Half: others use memory, too.
  credit_.store(static_cast<int64_t>(std::min(slack / 2, kCreditMax)), std::memory_order_relaxed);
}

void Guard::admit(uint64_t bytes, CommitReservation& reservation) {
  if (bytes <= kSmall) return;  // what credit is for
  reservation.begin(reserved_bytes_, bytes);
}

Guard::DiscardPass Guard::discard(uint64_t bytes, uint64_t commit) try {
  const auto begin = clock_.now();
  DiscardPass pass;
  DiscardSource& source = *source_.load();
  pass.given_back = source.release_kept(std::chrono::steady_clock::now() + kReleasePass);
  if (pass.given_back >= bytes) return pass;
  const auto deadline = std::chrono::steady_clock::now() + kPass;
  const DiscardSource::Discarded discarded =
      source.discard_for(commit, bytes - pass.given_back, deadline);
  pass.given_back += discarded.given_back;
  if (discarded.no_use()) {
    const uint64_t missing = bytes - std::min(bytes, pass.given_back);
    pass.given_back += source.sweep(missing, discarded.fruitless);
    pass.exhausted = pass.given_back < bytes;
    pass.nothing_unpinned = !source.any_unpinned();
  }
  pass.took = std::chrono::duration_cast<GuardPlan::Duration>(clock_.now() - begin);
  return pass;
} catch (const std::bad_alloc&) {
  return {.exhausted = true};
}

void Guard::count(const DiscardPass& pass) {
  if (pass.given_back > 0) ++status_.discards;
  status_.discarded_bytes += pass.given_back;
}

Status Guard::reserve(uint64_t bytes, CommitReservation& reservation) {
  if (!configured_.load(std::memory_order_acquire)) return {};
  if (bytes <= kSmall && take_credit(bytes)) return {};
  bool waited = false;
  std::optional<Time> others_until;
  Progress progress;
  MutexLock lock(mu_);
  while (true) {
    notice_changes_if_due();
    GuardPlan plan(1);
    sample(plan);
    if (plan.slack() >= bytes) {
      set_credit(plan.slack() - bytes);
      admit(bytes, reservation);
      return {};
    }
    // What no discarding can make room for must not cost other allocations anything.
    if (can_never_fit(bytes)) {
      if (notice_changes()) continue;
      return refuse(bytes);
    }
    credit_ = 0;
    const uint64_t missing = std::max(bytes - plan.slack(), kBatchBytes / 8);
    const uint64_t promised = reserved_bytes_.load();
    mu_.unlock();
    const DiscardPass pass = discard(missing, bytes + promised);
    mu_.lock();
    count(pass);
    if ((!pass.exhausted || pass.given_back > 0) && progress.seen(plan.available())) continue;
    const Fit fit = look_for_room(bytes);
    const Time now = std::chrono::steady_clock::now();
    if (fit == Fit::kFits) {
      admit(bytes, reservation);
      return {};
    }
    if (fit == Fit::kWithoutOthers) {
      if (!others_until) others_until = now + kPatience;
      if (now >= *others_until) return refuse(bytes);
      mu_.unlock();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      mu_.lock();
      continue;
    }
    if (std::exchange(waited, true)) return refuse(bytes);
    mu_.unlock();
    source_.load()->wait_for_reclaim(now + kPatience);
    mu_.lock();
  }
}

bool Guard::lacks(uint64_t bytes) {
  if (!configured_.load(std::memory_order_acquire)) return false;
  MutexLock lock(mu_);
  notice_changes_if_due();
  GuardPlan plan(1);
  sample(plan);
  return plan.slack() < bytes;
}

bool Guard::lacks(uint64_t bytes, const std::vector<LevelFiles>& groups) {
  MutexLock lock(mu_);
  notice_changes_if_due();
  GuardPlan plan(1);
  sample(plan, &groups);
  return plan.slack() < bytes;
}

Status Guard::refuse(uint64_t bytes) {
  ++status_.refusals;
  return Status::error(
      ErrorCode::kOutOfMemory,
      "committing " + std::to_string(bytes) +
          " bytes would exceed the memory limit, and nothing more can be discarded");
}

bool Guard::can_never_fit(uint64_t bytes) const {
  const uint64_t smallest = limits_.smallest_of_groups();
  return bytes > smallest && bytes - smallest > limits_.swap_room();
}

// After the kernel has dropped all that it can, and swapped out what it may.
Guard::Fit Guard::look_for_room(uint64_t bytes) const {
  const uint64_t swap_room = limits_.swap_room();
  const uint64_t promised = reserved_bytes_.load();
  Fit fit = Fit::kFits;
  for (const Watched& watched : limits_.levels()) {
    // What the machine has left is an estimate: no reason to refuse anything.
    if (watched.is_machine()) continue;
    const auto reading = limits_.look_at(watched);
    if (!reading || !reading->limited()) continue;
    const uint64_t kept = std::min(headroom_of(watched), kept_for_the_rest(reading->limit));
    const uint64_t needed = reading->usage - std::min(reading->cache, reading->usage) + kept;
    const uint64_t room = reading->limit + std::min(swap_room, UINT64_MAX - reading->limit);
    if (needed > room || bytes > room - needed) return Fit::kNever;
    if (promised > room - needed - bytes) fit = Fit::kWithoutOthers;
  }
  return fit;
}

}  // namespace pgalloc
