#include "file/evictables.h"

#include <new>
#include <unordered_set>

namespace pgalloc {

void Evictables::mark(UserId id, FileRange range) {
  MutexLock lock(mu_);
  if (shut_down_) return;
  const auto user = users_.try_emplace(id).first;
  RangeSet& ranges = user->second.ranges;
  try {
    ranges.remove_range(range);  // what is marked already must not be inserted twice
    ranges.insert(range, {});
  } catch (const std::bad_alloc&) {
    forget_if_idle(user);
    throw;
  }
}

void Evictables::unmark(UserId id, FileRange range) {
  MutexLock lock(mu_);
  const auto user = users_.find(id);
  if (user == users_.end()) return;
  user->second.ranges.remove_range(range);
  forget_if_idle(user);
}

void Evictables::unmark_all(UserId id) {
  MutexLock lock(mu_);
  const auto user = users_.find(id);
  if (user == users_.end()) return;
  user->second.ranges.clear();
  forget_if_idle(user);
}

bool Evictables::knows(UserId id) const {
  MutexLock lock(mu_);
  return users_.contains(id);
}

bool Evictables::empty() const {
  MutexLock lock(mu_);
  return users_.empty();
}

void Evictables::start_locked(UserId id, User& user) {
  if (user.evicting || shut_down_) return;
  due_.push_back(id);  // first: memory may run out
  user.evicting = true;
  ++running_;
}

void Evictables::start(UserId id) {
  MutexLock lock(mu_);
  const auto user = users_.find(id);
  if (user == users_.end()) return;
  start_locked(id, user->second);
  changed_.notify_all();
}

void Evictables::start_all() {
  MutexLock lock(mu_);
  for (auto& [id, user] : users_) start_locked(id, user);
  if (!due_.empty()) changed_.notify_all();
}

std::optional<Evictables::UserId> Evictables::wait_for_due_user() {
  MutexLock lock(mu_);
  while (true) {
    if (shut_down_ || paused_) return std::nullopt;
    if (!due_.empty()) break;
    changed_.wait(mu_);
  }
  const UserId user = due_.front();
  due_.pop_front();
  return user;
}

std::optional<FileRange> Evictables::next(UserId id) {
  MutexLock lock(mu_);
  const auto user = users_.find(id);
  if (user == users_.end()) return std::nullopt;
  const auto highest = user->second.ranges.last();
  if (highest.ok() && !shut_down_) {
    const FileRange range = highest.range();
    user->second.ranges.remove(highest);
    return range;
  }
  if (user->second.evicting) {
    user->second.evicting = false;
    --running_;
    if (running_ == 0) changed_.notify_all();
  }
  forget_if_idle(user);
  return std::nullopt;
}

bool Evictables::wait_until_idle(Deadline deadline) {
  MutexLock lock(mu_);
  while (running_ > 0) {
    if (!deadline) {
      changed_.wait(mu_);
    } else if (!changed_.wait_until(mu_, *deadline)) {
      return running_ == 0;
    }
  }
  return true;
}

void Evictables::shut_down() {
  MutexLock lock(mu_);
  shut_down_ = true;
  // Evictions that no thread has taken up yet end here; the others end at their next().
  for (const UserId id : due_) {
    users_[id].evicting = false;
    --running_;
  }
  due_.clear();
  for (auto& [id, user] : users_) user.ranges.clear();
  std::erase_if(users_, [](const auto& entry) { return !entry.second.evicting; });
  changed_.notify_all();
}

void Evictables::pause() {
  MutexLock lock(mu_);
  paused_ = true;
  changed_.notify_all();
}

void Evictables::resume() {
  MutexLock lock(mu_);
  paused_ = false;
}

std::optional<std::string> Evictables::verify() const {
  MutexLock lock(mu_);
  uint64_t evicting = 0;
  for (const auto& [id, user] : users_) {
    if (user.evicting) ++evicting;
    if (!user.evicting && user.ranges.empty()) return "a user is known for nothing";
  }
  if (evicting != running_) return "the evictions are not as many as were counted";
  std::unordered_set<UserId> seen;
  for (const UserId id : due_) {
    const auto user = users_.find(id);
    if (user == users_.end() || !user->second.evicting) return "a user is due without an eviction";
    if (!seen.insert(id).second) return "a user is due twice";
  }
  return std::nullopt;
}

void Evictables::forget_if_idle(std::unordered_map<UserId, User>::iterator user) {
  if (!user->second.evicting && user->second.ranges.empty()) users_.erase(user);
}

}  // namespace pgalloc
