#include "sharing/lookups.h"

#include <utility>

namespace pgalloc {

Status Lookups::refuse() {
  return Status::error(ErrorCode::kClosed, "the cache is not served any more");
}

uint64_t Lookups::ask(std::string key) {
  MutexLock lock(mu_);
  const uint64_t number = ++last_;
  if (closed_) {
    answers_.emplace(number, Found(refuse()));
    return number;
  }
  events_.push_back({true, number, std::move(key)});
  try {
    answers_.emplace(number, std::nullopt);
  } catch (...) {
    events_.pop_back();
    throw;
  }
  ++posted_;
  changed_.notify_all();
  return number;
}

std::optional<Lookups::Found> Lookups::take_answer(uint64_t number) {
  MutexLock lock(mu_);
  const auto answer = answers_.find(number);
  if (answer == answers_.end() || !answer->second) return std::nullopt;
  std::optional<Found> found = std::move(answer->second);
  answers_.erase(answer);
  return found;
}

void Lookups::drop(uint64_t number) {
  if (forked()) return;
  Found unwanted(std::nullopt);
  {
    MutexLock lock(mu_);
    if (const auto answer = answers_.find(number); answer != answers_.end()) {
      if (answer->second) unwanted = std::move(*answer->second);
      answers_.erase(answer);
    }
    if (closed_) return;
    events_.push_back({false, number, {}});
    ++posted_;
    changed_.notify_all();
  }
  if (unwanted.ok() && *unwanted) {
    (void)(*unwanted)->file->references().drop_lease((*unwanted)->range);
  }
}

std::optional<Lookups::Event> Lookups::next() {
  if (forked()) return std::nullopt;
  MutexLock lock(mu_);
  if (std::exchange(in_hand_, false)) ++done_;
  while (events_.empty() && !stopped_ && !closed_) changed_.wait(mu_);
  if (events_.empty() || stopped_) return std::nullopt;
  Event event = std::move(events_.front());
  events_.pop_front();
  in_hand_ = true;
  return event;
}

uint64_t Lookups::posted() const {
  MutexLock lock(mu_);
  return posted_;
}

bool Lookups::done(uint64_t posted) const {
  MutexLock lock(mu_);
  return closed_ || done_ >= posted;
}

void Lookups::stop() {
  if (forked()) return;
  MutexLock lock(mu_);
  stopped_ = true;
  changed_.notify_all();
}

void Lookups::resume() {
  if (forked()) return;
  MutexLock lock(mu_);
  stopped_ = false;
}

bool Lookups::answer(uint64_t number, Found& found) {
  if (forked()) return false;
  {
    MutexLock lock(mu_);
    const auto answer = answers_.find(number);
    if (answer == answers_.end() || answer->second) return false;
    answer->second.emplace(std::move(found));
  }
  answered_();
  return true;
}

void Lookups::close() {
  if (forked()) return;
  {
    MutexLock lock(mu_);
    if (closed_) return;
    closed_ = true;
    events_.clear();
    for (auto& [number, answer] : answers_) {
      if (!answer) answer.emplace(refuse());
    }
    changed_.notify_all();
  }
  answered_();
}

bool Lookups::closed() const {
  if (forked()) return true;
  MutexLock lock(mu_);
  return closed_;
}

}  // namespace pgalloc
