// Purpose: what the users of one file could let go of, and which of them are being asked to
// (section G).
//
// Users are known by number here; the layer above maps objects to numbers and runs the callbacks on
// threads of its own. The core only says which user is due and which range is next.
//
// Thread safety: every method may be called from any thread.
//
// Invariants
//   1. A user is known iff it has a range or is being evicted.
//   2. A user is in due_ at most once, and only while its eviction has begun and no thread runs it.
//   3. running_ counts the users whose eviction has begun and has not ended.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <unordered_map>

#include "base/mutex.h"
#include "segment/range_set.h"

namespace pgalloc {

class Evictables {
 public:
  using UserId = uint64_t;
  using Deadline = std::optional<std::chrono::steady_clock::time_point>;

  // Rows G2, G3. REQUIRES: range is not empty.
  void mark(UserId user, FileRange range) EXCLUDES(mu_);
  void unmark(UserId user, FileRange range) EXCLUDES(mu_);
  void unmark_all(UserId user) EXCLUDES(mu_);
  bool knows(UserId user) const EXCLUDES(mu_);
  bool empty() const EXCLUDES(mu_);  // no user is known

  // Begins the eviction of one user, or of all, unless it runs already.
  void start(UserId user) EXCLUDES(mu_);
  void start_all() EXCLUDES(mu_);

  // For the threads that run callbacks. A user whose eviction begins; nothing while paused and
  // after shut_down(). The caller calls next() for that user until it returns nothing.
  std::optional<UserId> wait_for_due_user() EXCLUDES(mu_);
  // Row G4: removes and returns the highest range, or ends this eviction.
  std::optional<FileRange> next(UserId user) EXCLUDES(mu_);

  // False when the deadline passed before every eviction ended.
  bool wait_until_idle(Deadline deadline) EXCLUDES(mu_);
  // No eviction begins from here on; those under way find nothing more to do.
  void shut_down() EXCLUDES(mu_);
  // Makes the threads in wait_for_due_user() return, until resume(). What is due stays due.
  void pause() EXCLUDES(mu_);
  void resume() EXCLUDES(mu_);

  // What is broken of the invariants.
  std::optional<std::string> verify() const EXCLUDES(mu_);

 private:
  struct User {
    RangeSet ranges;
    bool evicting = false;
  };
  void start_locked(UserId id, User& user) REQUIRES(mu_);
  void forget_if_idle(std::unordered_map<UserId, User>::iterator user) REQUIRES(mu_);

  mutable Mutex mu_{LockRank::kEvictables};
  CondVar changed_;
  std::unordered_map<UserId, User> users_ GUARDED_BY(mu_);
  std::deque<UserId> due_ GUARDED_BY(mu_);
  uint64_t running_ GUARDED_BY(mu_) = 0;
  bool paused_ GUARDED_BY(mu_) = false;
  bool shut_down_ GUARDED_BY(mu_) = false;
};

}  // namespace pgalloc
