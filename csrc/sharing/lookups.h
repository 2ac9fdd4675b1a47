// Purpose: what the broker asks Python: the values of a served cache. The broker's thread never takes
// the GIL, so it leaves a question here, goes on, and comes back when there is an answer. A thread of
// Python's takes the questions and answers them in its own time.
//
// Thread safety: any thread.
//
// A key is limited (kKeyBytesMax): Python takes it apart, and nothing else is looked up meanwhile.
//
// Invariants
//   1. Each question has a number, is answered once, and its answer is taken once, or dropped.
//   2. What Python keeps for a value (its view) it keeps until it is told to drop the number.
//   3. The event that drops a number is made together with the question: drop() needs no memory.
//   4. In a forked child the tables are left alone: a thread of the parent's may be in the middle of
//      them, or waiting.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "base/process_generation.h"
#include "base/status.h"
#include "file/memory_file.h"

namespace pgalloc {

class Lookups {
 public:
  // A value: bytes [start, stop) of pages. It owns a lease on the pages.
  struct Value {
    std::shared_ptr<MemoryFile> file;
    FileRange range;
    uint64_t start = 0;
    uint64_t stop = 0;
  };
  static constexpr size_t kKeyBytesMax = size_t{1} << 20;  // encoded; pgalloc/cache/keys.py
  using Found = Result<std::optional<Value>>;
  struct Event {
    bool look_up = false;  // else: drop what is kept for the number
    uint64_t number = 0;
    std::string key;
  };

  explicit Lookups(std::function<void()> answered) : answered_(std::move(answered)) {}
  ~Lookups();
  Lookups(const Lookups&) = delete;
  Lookups& operator=(const Lookups&) = delete;

  // --- The broker's side ---------------------------------------------------------------------------

  // A key that is too long is answered at once, and Python is not asked.
  uint64_t ask(std::string key) EXCLUDES(mu_);
  // Throws std::bad_alloc if the answer is that there was no memory for one.
  std::optional<Found> take_answer(uint64_t number) EXCLUDES(mu_);
  // Nothing is needed of this number any more. The file of an answer that was not taken goes to
  // `let_go`, if its memory suffices: it may be its last owner.
  void drop(uint64_t number, std::vector<std::shared_ptr<MemoryFile>>* let_go) EXCLUDES(mu_);
  // How much there has been to do for Python so far, and how much of it is done.
  uint64_t posted() const EXCLUDES(mu_);
  bool done(uint64_t posted) const EXCLUDES(mu_);

  // --- Python's side -------------------------------------------------------------------------------

  // Waits for it; nothing after stop() or close().
  std::optional<Event> next() EXCLUDES(mu_);
  // What next() gave, if it was a drop, is given again.
  void put_back() noexcept EXCLUDES(mu_);
  // Sends those home that wait in next(), until resume().
  void stop() EXCLUDES(mu_);
  void resume() EXCLUDES(mu_);
  // False if the answer is not wanted any more: the caller still owns what it brought.
  bool answer(uint64_t number, Found& found) EXCLUDES(mu_);
  // There is no memory for an answer; needs none itself. Nothing happens if there is an answer.
  void fail(uint64_t number) noexcept EXCLUDES(mu_);
  // No more answers come: all who wait, and all who ask from here on, are told.
  void close() EXCLUDES(mu_);
  bool closed() const EXCLUDES(mu_);

 private:
  static Status refuse();
  // In a forked child the questions are its parent's, and so is the lock.
  bool forked() const { return generation_ != process_generation(); }

  const uint32_t generation_ = process_generation();
  const std::function<void()> answered_;
  mutable Mutex mu_{LockRank::kLookups};
  struct Question {
    std::optional<Found> answer;
    bool failed = false;  // there was no memory for an answer
    bool taken = false;
    std::list<Event> end;  // what tells Python to drop it
  };
  struct Tables {
    CondVar changed;
    std::list<Event> events;
    std::list<Event> in_hand;                          // Python has taken it, and not come back
    std::unordered_map<uint64_t, Question> questions;  // until they are dropped
  };
  std::unique_ptr<Tables> tables_ GUARDED_BY(mu_) = std::make_unique<Tables>();
  uint64_t last_ GUARDED_BY(mu_) = 0;
  uint64_t posted_ GUARDED_BY(mu_) = 0;
  uint64_t done_ GUARDED_BY(mu_) = 0;
  bool stopped_ GUARDED_BY(mu_) = false;
  bool closed_ GUARDED_BY(mu_) = false;
};

}  // namespace pgalloc
