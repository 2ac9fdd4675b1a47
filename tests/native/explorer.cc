#include "native/explorer.h"

#include <algorithm>
#include <array>
#include <exception>
#include <optional>
#include <random>
#include <sstream>
#include <vector>

#include "base/check.h"
#include "native/explorer_fiber.h"
#include "native/explorer_seq_cst.h"

namespace pgalloc::native_tests {

namespace exploring {

constexpr uint32_t kApart = 1 << 16;  // so that stores fit between messages
constexpr uint32_t kDies = UINT32_MAX;

static bool acquires(std::memory_order order) {
  return order != std::memory_order_relaxed && order != std::memory_order_release;
}
static bool releases(std::memory_order order) {
  return order == std::memory_order_release || order == std::memory_order_acq_rel ||
         order == std::memory_order_seq_cst;
}

struct Message {
  uint32_t at = 0;
  bool is_followed = false;  // by a read-modify-write that read it
  uint64_t value = 0;
  View released;
};

struct Location {
  std::string name;
  std::vector<Message> messages;  // by `at`
};

struct PlainData {
  uint32_t writer = 0, write_clock = 0;
  std::array<uint32_t, kThreadsMax> read_clocks{};
};

struct Thread {
  std::string name;
  std::function<void()> body;
  std::optional<uint32_t> dead;  // the location, if it is mortal
  bool runs = true;
  uint32_t pauses = 0;
  Operation next;  // it waits for this
  uint64_t result = 0;
  View view, acquirable, releasable;
};

// One choice: the thread whose operation is next, and the message that this reads or writes behind.
struct Choice {
  uint32_t thread = 0;
  uint32_t at = 0;
  uint32_t location = 0;
  bool writes = false;

  bool commutes_with(const Choice& other) const {
    return thread != other.thread &&
           !(writes && other.writes && location == other.location && at == other.at);
  }
  friend bool operator==(const Choice&, const Choice&) = default;
};

struct Step {
  Choice choice;
  Operation operation;
  uint64_t value = 0;            // what was read or written
  size_t number = 0, count = 0;  // of the message, then
};

class Engine {
 public:
  Engine(const std::function<void(Scenario&)>& setup, Bounds bounds)
      : setup_(setup), bounds_(bounds) {
    PGALLOC_CHECK(engine == nullptr);
    engine = this;
  }
  ~Engine() { engine = nullptr; }

  Exploration explore() {
    do {
      run([this](size_t depth) { return choose_in_turn(depth); });
    } while (result_.failure.empty() && next_path());
    return result_;
  }
  Exploration explore_randomly(uint64_t seed, uint64_t runs) {
    std::mt19937_64 random(seed);
    for (uint64_t number = 0; number < runs && result_.failure.empty(); ++number) {
      run([&](size_t) { return choose_randomly(random); });
    }
    return result_;
  }

  // --- For the types of explorer.h ---------------------------------------------------------------

  uint32_t add_location(uint64_t value) {
    const auto slot = kThreadsMax + static_cast<uint32_t>(locations_.size());
    PGALLOC_CHECK_OP(slot, <, kSlotsMax);
    locations_.emplace_back().messages.emplace_back().value = value;
    slots_ = slot + 1;
    return slot;
  }
  Location& location(uint32_t slot) { return locations_[slot - kThreadsMax]; }
  uint32_t add_plain() {
    plain_.emplace_back();
    return static_cast<uint32_t>(plain_.size() - 1);
  }

  uint64_t operate(const Operation& operation) {
    if (current_ == kNone) return operate_alone(operation);
    const uint32_t self = current_;
    threads_[self].next = operation;
    fibers_[self].leave();
    return threads_[self].result;
  }

  void use_plain(uint32_t number, bool writes) {
    if (current_ == kNone) return;
    PlainData& plain = plain_[number];
    const auto& known = threads_[current_].view.at;
    bool races = known[plain.writer] < plain.write_clock;
    if (writes) {
      for (uint32_t other = 0; other < kThreadsMax; ++other) {
        races = races || (other != current_ && known[other] < plain.read_clocks[other]);
      }
      plain.writer = current_;
      plain.write_clock = known[current_];
    } else {
      plain.read_clocks[current_] = known[current_];
    }
    if (!races) return;
    failure_ = "data race: plain data " + std::to_string(number);
    end_current();
  }

  void add_thread(std::string name, std::function<void()> body, std::optional<uint32_t> dead) {
    PGALLOC_CHECK_OP(threads_.size(), <, kThreadsMax);
    Thread& thread = threads_.emplace_back();
    thread.name = std::move(name);
    thread.body = std::move(body);
    thread.dead = dead;
    if (fibers_.size() < threads_.size()) fibers_.emplace_back();
  }

  void fail(const char* what) {
    if (failure_.empty()) failure_ = what;
    if (current_ != kNone) end_current();
  }

  static inline Engine* engine = nullptr;  // the exploration that runs

 private:
  static constexpr uint32_t kNone = UINT32_MAX;

  // A state that the search has come to.
  struct State {
    std::vector<Choice> choices;
    size_t chosen = 0;
    std::vector<Choice> asleep;  // whatever begins with one of these has been tried
  };

  // --- The search --------------------------------------------------------------------------------

  // One execution, from a new scenario. choose(depth) gives nothing if no choice is left to try.
  template <class Choose>
  void run(Choose choose) {
    begin();
    bool is_cut = false, is_redundant = false;
    while (failure_.empty() && !is_cut && std::ranges::any_of(threads_, &Thread::runs)) {
      is_cut = trace_.size() == bounds_.steps_max;
      if (is_cut) break;
      const std::optional<Choice> choice = choose(trace_.size());
      is_redundant = !choice.has_value();
      if (is_redundant) break;
      is_cut = take(*choice);
    }
    if (failure_.empty() && !is_cut && !is_redundant && scenario_->finally_) scenario_->finally_();
    is_cut ? ++result_.cut : is_redundant ? ++result_.redundant : ++result_.executions;
    if (!failure_.empty()) result_.failure = told();
  }

  void begin() {
    threads_.clear();
    locations_.clear();
    plain_.clear();
    trace_.clear();
    seq_cst_.clear();
    failure_.clear();
    scenario_.emplace();
    setup_(*scenario_);
    for (uint32_t number = 0; number < threads_.size(); ++number) {
      threads_[number].view.at[number] = 1;
      fibers_[number].begin(&enter_thread);
      resume(number);
    }
  }

  std::optional<Choice> choose_in_turn(size_t depth) {
    if (depth == path_.size()) {
      State state;
      if (depth > 0) {
        const State& last = path_[depth - 1];
        const Choice& taken = last.choices[last.chosen];
        const auto keep = [&](const Choice& choice) {
          if (choice.commutes_with(taken)) state.asleep.push_back(choice);
        };
        std::ranges::for_each(last.asleep, keep);
        std::for_each_n(last.choices.begin(), last.chosen, keep);
      }
      for (uint32_t number = 0; number < threads_.size(); ++number)
        add_choices(number, state.choices);
      std::erase_if(state.choices, [&](const Choice& choice) {
        return std::ranges::find(state.asleep, choice) != state.asleep.end();
      });
      if (state.choices.empty()) return std::nullopt;
      path_.push_back(std::move(state));
    }
    return path_[depth].choices[path_[depth].chosen];
  }
  bool next_path() {
    while (!path_.empty() && path_.back().chosen + 1 == path_.back().choices.size())
      path_.pop_back();
    if (!path_.empty()) ++path_.back().chosen;
    return !path_.empty();
  }

  std::optional<Choice> choose_randomly(std::mt19937_64& random) {
    constexpr uint64_t kDeaths = 8;  // one choice in so many is to die, where that is one
    while (true) {
      std::vector<Choice> choices;
      add_choices(static_cast<uint32_t>(random() % threads_.size()), choices);
      if (choices.empty()) continue;
      const bool may_die = choices.size() > 1 && choices.back().at == kDies;
      if (may_die && random() % kDeaths == 0) return choices.back();
      return choices[random() % (choices.size() - may_die)];
    }
  }

  // What the thread may do next. There is always something: the end of a modification order.
  void add_choices(uint32_t number, std::vector<Choice>& choices) {
    const Thread& thread = threads_[number];
    if (!thread.runs) return;
    const Operation& operation = thread.next;
    if (operation.kind == Kind::kFence || operation.kind == Kind::kPause) {
      choices.push_back({number, 0, 0, false});
    } else {
      const auto& messages = location(operation.location).messages;
      for (size_t index = messages.size(); index-- > 0;) {
        const Message& message = messages[index];
        if (message.at < thread.view.at[operation.location]) break;
        const bool writes = does_write(operation, message.value);
        const bool would_change =
            operation.kind == Kind::kLoad || writes || message.value != operation.expected;
        if (!would_change || (writes && message.is_followed)) continue;
        const uint32_t at = writes ? behind(messages, index) : message.at;
        const bool is_seq_cst = order_of(operation, writes) == std::memory_order_seq_cst;
        if (!seq_cst_.allows(thread.view, operation.location, at, writes, is_seq_cst)) continue;
        choices.push_back({number, message.at, operation.location, writes});
      }
    }
    if (thread.dead) choices.push_back({number, kDies, *thread.dead, true});
  }

  // --- The memory --------------------------------------------------------------------------------

  static bool does_write(const Operation& operation, uint64_t value) {
    return operation.kind != Kind::kLoad &&
           (operation.kind != Kind::kCompareExchange || value == operation.expected);
  }
  static std::memory_order order_of(const Operation& operation, bool writes) {
    return operation.kind == Kind::kCompareExchange && !writes ? operation.order_failed
                                                               : operation.order;
  }
  static uint64_t written(const Operation& operation, uint64_t value) {
    return (operation.kind == Kind::kAdd ? value + operation.operand : operation.operand) &
           operation.mask;
  }
  // Where a message goes behind that one.
  static uint32_t behind(const std::vector<Message>& messages, size_t index) {
    const uint32_t at = messages[index].at;
    if (index + 1 == messages.size()) return at + kApart;
    const uint32_t between = at + (messages[index + 1].at - at) / 2;
    PGALLOC_CHECK_OP(between, >, at);
    return between;
  }

  // True if the execution is to be cut.
  bool take(const Choice& choice) {
    Thread& thread = threads_[choice.thread];
    trace_.push_back({choice, thread.next});
    if (choice.at == kDies) {
      thread.runs = false;
      auto& messages = location(*thread.dead).messages;
      messages.push_back({behind(messages, messages.size() - 1), false, 1, thread.view});
      return false;
    }
    if (thread.next.kind == Kind::kPause) {
      if (thread.pauses++ == bounds_.pauses_max) return true;
    } else if (thread.next.kind == Kind::kFence) {
      fence(thread);
    } else {
      access(thread, choice);
    }
    ++thread.view.at[choice.thread];
    resume(choice.thread);
    return false;
  }

  void fence(Thread& thread) {
    const std::memory_order order = thread.next.order;
    if (acquires(order)) thread.view.join(thread.acquirable, slots_);
    if (order == std::memory_order_seq_cst) thread.view.nodes |= seq_cst_.add_fence(thread.view);
    if (releases(order)) thread.releasable = thread.view;
  }

  void access(Thread& thread, const Choice& choice) {
    const Operation& operation = thread.next;
    auto& messages = location(operation.location).messages;
    const auto found = std::ranges::find(messages, choice.at, &Message::at);
    const auto index = static_cast<size_t>(found - messages.begin());
    Message& message = *found;
    const uint32_t at = choice.writes ? behind(messages, index) : choice.at;
    const std::memory_order order = order_of(operation, choice.writes);
    const bool reads = operation.kind != Kind::kStore;

    const uint64_t node = seq_cst_.add_access(thread.view, operation.location, at, choice.writes,
                                              order == std::memory_order_seq_cst);
    trace_.back().number = index + 1;
    trace_.back().count = messages.size();
    if (reads) {
      thread.result = trace_.back().value = message.value;
      (acquires(order) ? thread.view : thread.acquirable).join(message.released, slots_);
    }
    thread.view.at[operation.location] = at;
    if (choice.writes) {
      Message next{at, false, written(operation, message.value),
                   releases(order) ? thread.view : thread.releasable};
      if (reads) next.released.join(message.released, slots_);
      message.is_followed = reads;
      if (!reads) trace_.back().value = next.value;
      messages.insert(messages.begin() + static_cast<ptrdiff_t>(index) + 1, next);
    }
    thread.view.nodes |= node;
  }

  // In `setup` and `finally`.
  uint64_t operate_alone(const Operation& operation) {
    if (operation.kind == Kind::kFence || operation.kind == Kind::kPause) return 0;
    uint64_t& value = location(operation.location).messages.back().value;
    const uint64_t read = value;
    if (does_write(operation, read)) value = written(operation, read);
    return read;
  }

  // --- The threads -------------------------------------------------------------------------------

  // Until it waits for its next operation, or ends.
  void resume(uint32_t number) {
    current_ = number;
    fibers_[number].enter();
    current_ = kNone;
  }
  static void enter_thread() {
    Engine& self = *engine;
    self.fibers_[self.current_].arrive();
    try {
      self.threads_[self.current_].body();
    } catch (const std::exception& error) {
      self.failure_ = std::string("exception: ") + error.what();
    }
    self.end_current();
  }
  void end_current() {
    const uint32_t self = current_;
    threads_[self].runs = false;
    fibers_[self].leave();  // for ever
  }

  // --- The trace ---------------------------------------------------------------------------------

  std::string name_of(uint32_t slot) {
    const std::string& name = location(slot).name;
    return name.empty() ? "location " + std::to_string(slot - kThreadsMax) : name;
  }

  std::string told() {
    static constexpr const char* kKinds[] = {
        "load", "store", "exchange", "fetch_add", "compare_exchange", "fence", "pause"};
    static constexpr const char* kOrders[] = {"relaxed", "consume", "acquire",
                                              "release", "acq_rel", "seq_cst"};
    std::ostringstream text;
    text << failure_ << "\n";
    for (const Step& step : trace_) {
      const Operation& operation = step.operation;
      text << "  " << threads_[step.choice.thread].name << ": ";
      if (step.choice.at == kDies) {
        text << "dies before ";
      }
      const bool is_access = operation.kind < Kind::kFence;
      if (is_access) text << name_of(operation.location) << ".";
      text << kKinds[static_cast<size_t>(operation.kind)];
      if (is_access && operation.kind != Kind::kLoad) {
        text << " " << static_cast<int64_t>(operation.operand);
      }
      if (operation.kind != Kind::kPause) {
        text << ", " << kOrders[static_cast<size_t>(order_of(operation, step.choice.writes))];
      }
      if (is_access && step.choice.at != kDies) {
        if (operation.kind != Kind::kStore) text << " = " << step.value;
        text << " (" << (step.choice.writes ? "behind" : "reads") << " message " << step.number
             << " of " << step.count << ")";
      }
      text << "\n";
    }
    return text.str();
  }

  const std::function<void(Scenario&)>& setup_;
  const Bounds bounds_;
  Exploration result_;
  std::vector<State> path_;
  std::deque<Fiber> fibers_;

  // Of one execution. The scenario goes first: what it has made uses the rest.
  std::deque<Thread> threads_;
  std::deque<Location> locations_;
  std::vector<PlainData> plain_;
  std::vector<Step> trace_;
  SeqCst seq_cst_;
  uint32_t slots_ = kThreadsMax;
  uint32_t current_ = kNone;
  std::string failure_;
  std::optional<Scenario> scenario_;
};

uint32_t add_location(uint64_t value) { return Engine::engine->add_location(value); }
void name_location(uint32_t location, std::string name) {
  Engine::engine->location(location).name = std::move(name);
}
uint64_t operate(const Operation& operation) { return Engine::engine->operate(operation); }
uint32_t add_plain() { return Engine::engine->add_plain(); }
void use_plain(uint32_t plain, bool writes) { Engine::engine->use_plain(plain, writes); }

}  // namespace exploring

using exploring::Engine;

void Scenario::thread(std::string name, std::function<void()> body) {
  Engine::engine->add_thread(std::move(name), std::move(body), std::nullopt);
}
Explored::Atomic<bool>& Scenario::mortal_thread(std::string name, std::function<void()> body) {
  auto& dead = make<Explored::Atomic<bool>>();
  dead.name(name + " is dead");
  Engine::engine->add_thread(std::move(name), std::move(body), dead.location());
  return dead;
}
void Scenario::check(bool holds, const char* what) {
  if (!holds) Engine::engine->fail(what);
}

Exploration explore(const std::function<void(Scenario&)>& setup, Bounds bounds) {
  return Engine(setup, bounds).explore();
}
Exploration explore_randomly(uint64_t seed, uint64_t runs,
                             const std::function<void(Scenario&)>& setup, Bounds bounds) {
  return Engine(setup, bounds).explore_randomly(seed, runs);
}

}  // namespace pgalloc::native_tests
