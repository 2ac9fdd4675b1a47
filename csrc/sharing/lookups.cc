#include "sharing/lookups.h"

#include <new>
#include <tuple>
#include <utility>

namespace pgalloc {

Status Lookups::refuse() {
  return Status::error(ErrorCode::kClosed, "the cache is not served any more");
}

// No asker is told: those who would ask hold this object.
Lookups::~Lookups() {
  if (forked()) {
    std::ignore = tables_.release();
    return;
  }
  for (auto& [number, question] : tables_->questions) {
    if (!question.answer || !question.answer->ok() || !**question.answer) continue;
    const Value& value = ***question.answer;
    (void)value.file->references().drop_lease(value.range);
  }
}

uint64_t Lookups::ask(std::string key) {
  MutexLock lock(mu_);
  const uint64_t number = last_ + 1;
  Question question;
  if (key.size() > kKeyBytesMax) {
    question.answer.emplace(Status::error(
        ErrorCode::kSharing, "a key of a served cache has " + std::to_string(kKeyBytesMax) +
                                 " bytes at most, and this one has " + std::to_string(key.size())));
    tables_->questions.emplace(number, std::move(question));
    return last_ = number;
  }
  question.end.push_back({false, number, {}});
  std::list<Event> asked;
  if (!closed_) asked.push_back({true, number, std::move(key)});
  tables_->questions.emplace(number, std::move(question));
  last_ = number;
  if (closed_) return number;
  tables_->events.splice(tables_->events.end(), asked);
  ++posted_;
  tables_->changed.notify_all();
  return number;
}

std::optional<Lookups::Found> Lookups::take_answer(uint64_t number) {
  MutexLock lock(mu_);
  const auto found = tables_->questions.find(number);
  if (found == tables_->questions.end() || found->second.taken) return std::nullopt;
  Question& question = found->second;
  if (!question.answer && question.failed) throw std::bad_alloc();
  if (!question.answer && !closed_) return std::nullopt;
  if (!question.answer) question.answer.emplace(refuse());
  question.taken = true;
  return std::exchange(question.answer, std::nullopt);
}

void Lookups::drop(uint64_t number, std::vector<std::shared_ptr<MemoryFile>>* let_go) {
  if (forked()) return;
  std::optional<Found> unwanted;
  {
    MutexLock lock(mu_);
    const auto found = tables_->questions.find(number);
    if (found == tables_->questions.end()) return;
    unwanted = std::exchange(found->second.answer, std::nullopt);
    if (!closed_ && !found->second.end.empty()) {  // else Python was not asked
      tables_->events.splice(tables_->events.end(), found->second.end);
      ++posted_;
      tables_->changed.notify_all();
    }
    tables_->questions.erase(found);
  }
  if (!unwanted || !unwanted->ok() || !**unwanted) return;
  Value& value = ***unwanted;
  (void)value.file->references().drop_lease(value.range);
  let_go->push_back(std::move(value.file));
}

std::optional<Lookups::Event> Lookups::next() {
  if (forked()) return std::nullopt;
  MutexLock lock(mu_);
  if (!tables_->in_hand.empty()) ++done_;
  tables_->in_hand.clear();
  while (tables_->events.empty() && !stopped_ && !closed_) tables_->changed.wait(mu_);
  if (tables_->events.empty() || stopped_) return std::nullopt;
  std::list<Event>& in_hand = tables_->in_hand;
  in_hand.splice(in_hand.begin(), tables_->events, tables_->events.begin());
  return std::move(in_hand.front());
}

void Lookups::put_back() noexcept {
  if (forked()) return;
  MutexLock lock(mu_);
  if (!closed_) tables_->events.splice(tables_->events.begin(), tables_->in_hand);
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
  tables_->changed.notify_all();
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
    const auto question = tables_->questions.find(number);
    if (closed_ || question == tables_->questions.end()) return false;
    const Question& its = question->second;
    if (its.answer || its.failed || its.taken) return false;
    question->second.answer.emplace(std::move(found));
  }
  answered_();
  return true;
}

void Lookups::fail(uint64_t number) noexcept {
  if (forked()) return;
  {
    MutexLock lock(mu_);
    const auto question = tables_->questions.find(number);
    if (question == tables_->questions.end() || question->second.answer) return;
    question->second.failed = true;
  }
  answered_();
}

void Lookups::close() {
  if (forked()) return;
  {
    MutexLock lock(mu_);
    if (closed_) return;
    closed_ = true;
    tables_->events.clear();
    tables_->changed.notify_all();
  }
  answered_();
}

bool Lookups::closed() const {
  if (forked()) return true;
  MutexLock lock(mu_);
  return closed_;
}

}  // namespace pgalloc
