// Purpose: keeps this process away from its memory limits: a native thread that watches every level
// that has one, and discards unpinned memory before a limit is reached. It needs no GIL, and no
// signal from the kernel; those that come only make it sample sooner.
//
// Thread safety: every method may be called from any thread. mu_ guards all that is known of the
// limits; it is not held while memory is given back.
//
// Lock order: mu_ before all other locks of the core.
//
// Invariants
//   1. The thread runs from the moment there is something to do for it (something was unpinned, or
//      an event is watched) and limits are known; never between park() and resume().
//   2. credit_ is never more than what may be committed before the headroom of any level is touched,
//      as it was at the last sample; it is a few MiB at most, good for kPeriod, and void once a limit
//      changed.
//   3. reserved_bytes_ is the sum of all reservations: what is about to be committed counts as used.
//   4. A forked child has a guard of its own, which looks for the child's limits when it is first needed.
//   5. A limit that changed, and a process that was moved to other ones, are noticed at once where the
//      kernel tells of it; else within kPeriod and a little, by the thread and by every commit. Only of
//      an idle process a move is noticed later then.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "base/status.h"
#include "guard/commit_gate.h"
#include "guard/discard_source.h"
#include "guard/guard_plan.h"
#include "guard/limits.h"
#include "guard/memory_group.h"
#include "guard/memory_level.h"

namespace pgalloc {

class Guard final : public CommitGate {
 public:
  enum class Alarm : uint8_t {
    kNone,
    kLow,       // less than the headroom is left: memory is being given back
    kMedium,    // and nothing more could be
    kCritical,  // and less than a quarter of the headroom is left
  };

  struct LevelStatus {
    LevelFiles files;
    MemoryLevel::Reading reading;
    uint64_t headroom = 0;
  };
  struct GuardStatus {
    bool running = false;
    Alarm alarm = Alarm::kNone;
    std::optional<uint64_t> available;  // until the first limit; nothing without a limit
    uint64_t samples = 0;
    uint64_t crossings = 0;   // how often less than the headroom was left
    uint64_t shortfalls = 0;  // how often nothing more could be given back then
    uint64_t discards = 0;    // batches of unpinned allocations
    uint64_t discarded_bytes = 0;
    uint64_t refusals = 0;  // of commits that would have exceeded a limit
    std::vector<LevelStatus> levels;
  };

  static Guard& instance() { return *instance_.load(std::memory_order_acquire); }

  // How often it looks at least whether a limit changed.
  static constexpr std::chrono::milliseconds kPeriod{40};

  // The levels to watch; those that cannot be read are left out.
  void configure(const std::vector<LevelFiles>& levels) EXCLUDES(mu_);
  // The levels that this process is charged to, also when it is moved, and the machine. False if there
  // are none.
  bool follow(const ProcFiles& where) EXCLUDES(mu_);
  // Where there is memory to give back; for all guards of this process. The last one counts.
  static void set_source(DiscardSource& source) { source_ = &source; }

  // The largest of all requests counts; without any, a tenth of each limit.
  uint64_t add_headroom(Headroom headroom) EXCLUDES(mu_);
  void remove_headroom(uint64_t token) EXCLUDES(mu_);
  // What this process asks for as long as it lives, and the children that it forks from now on.
  void set_headroom(std::optional<Headroom> headroom) EXCLUDES(mu_);
  // An eventfd of the caller's that is written to whenever the alarm rises, until unwatch().
  void watch(int event_fd) EXCLUDES(mu_);
  void unwatch(int event_fd) EXCLUDES(mu_);
  GuardStatus status() EXCLUDES(mu_);

  Status reserve(uint64_t bytes, CommitReservation& reservation) override EXCLUDES(mu_);
  // Of any level, or of those groups among them.
  bool lacks(uint64_t bytes) override EXCLUDES(mu_);
  bool lacks(uint64_t bytes, const std::vector<LevelFiles>& groups) EXCLUDES(mu_);

  // What the thread does between two sleeps, for tests. How long it would sleep.
  GuardPlan::Duration step() EXCLUDES(mu_);
  // How long a discard pass takes is measured on it; for tests.
  Clock& clock() { return clock_; }

  // No thread between the two. Calls nest.
  void park() EXCLUDES(mu_);
  void resume() EXCLUDES(mu_);
  static void before_fork();
  static void after_fork_in_parent();
  static void after_fork_in_child();

 private:
  // So much is given back before the next sample.
  static constexpr uint64_t kBatchBytes = uint64_t{8} << 20;
  using Watched = Limits::Watched;
  using Time = std::chrono::steady_clock::time_point;

  Guard();

  enum class Fit : uint8_t {
    kFits,
    // It would fit if other threads had reserved nothing. Part of that may be committed already, and so
    // count twice: it is worth waiting.
    kWithoutOthers,
    kNever,
  };
  // What was found to give back.
  struct DiscardPass {
    uint64_t given_back = 0;
    bool exhausted = false;  // that is all there was
    bool nothing_unpinned = false;
    GuardPlan::Duration took{0};
  };
  // So that `commit` fits, or, if that is 0, for the headroom.
  DiscardPass discard(uint64_t bytes, uint64_t commit) EXCLUDES(mu_);

  void on_unpinned() override EXCLUDES(mu_);
  void start_if_wanted() REQUIRES(mu_);
  void wake() REQUIRES(mu_);
  void run() EXCLUDES(mu_);
  GuardPlan::Duration sample_and_react() REQUIRES(mu_);
  void sleep(GuardPlan::Duration delay) REQUIRES(mu_);
  bool doze(std::chrono::milliseconds longest) REQUIRES(mu_);
  void hear_of_vain_reclaim() REQUIRES(mu_);
  void give_way() REQUIRES(mu_);
  void end_yielding_if_due() REQUIRES(mu_);

  void begin_anew() REQUIRES(mu_);
  bool notice_changes() REQUIRES(mu_);
  void notice_changes_if_due() REQUIRES(mu_);
  uint64_t headroom_of(const Watched& watched) const REQUIRES(mu_);
  // Of all levels, or of some.
  void sample(GuardPlan& plan, const std::vector<LevelFiles>* only = nullptr) REQUIRES(mu_);
  void arm() EXCLUDES(mu_);
  void start_arming() REQUIRES(mu_);
  void raise(Alarm alarm) REQUIRES(mu_);
  bool can_never_fit(uint64_t bytes) const REQUIRES(mu_);
  Fit look_for_room(uint64_t bytes) const REQUIRES(mu_);
  Status refuse(uint64_t bytes) REQUIRES(mu_);
  void admit(uint64_t bytes, CommitReservation& reservation);
  bool take_credit(uint64_t bytes);
  void set_credit(uint64_t slack);
  void count(const DiscardPass& pass) REQUIRES(mu_);

  static std::atomic<Guard*> instance_;
  static std::atomic<DiscardSource*> source_;

  Mutex mu_{LockRank::kGuard};
  Limits limits_ GUARDED_BY(mu_);
  Time noticed_ GUARDED_BY(mu_);
  static constexpr uint64_t kOfProcess = 0;  // a token
  std::map<uint64_t, Headroom> headroom_requests_ GUARDED_BY(mu_);
  uint64_t last_token_ GUARDED_BY(mu_) = 0;
  std::vector<os::Descriptor> watchers_ GUARDED_BY(mu_);  // they are their owners'
  GuardPlan plan_ GUARDED_BY(mu_);
  GuardStatus status_ GUARDED_BY(mu_);  // the counts; the rest is put together when asked for
  Alarm alarm_ GUARDED_BY(mu_) = Alarm::kNone;
  bool wanted_ GUARDED_BY(mu_) = false;
  bool exhausted_ GUARDED_BY(mu_) = false;  // would discard if it could
  int parks_ GUARDED_BY(mu_) = 0;
  bool stops_ GUARDED_BY(mu_) = false;
  std::thread thread_ GUARDED_BY(mu_);
  // Another thread arms. Nothing joins it but park(), which a process need not come to: so it is
  // detached.
  bool arms_ GUARDED_BY(mu_) = false;
  bool arms_again_ GUARDED_BY(mu_) = false;  // and has to begin anew
  CondVar armed_;
  pid_t arming_id_ GUARDED_BY(mu_) = 0;  // the last one's; 0: it is known to be gone
  bool gives_way_ GUARDED_BY(mu_) = false;
  Time yields_until_ GUARDED_BY(mu_);
  std::atomic<pid_t> thread_id_{0};
  Clock clock_;
  os::Descriptor wake_;
  std::atomic<bool> configured_{false};
  std::atomic<int64_t> credit_{0};
  std::atomic<Time> credit_ends_{};
  std::atomic<uint64_t> reserved_bytes_{0};
};

}  // namespace pgalloc
