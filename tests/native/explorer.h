// Purpose: every execution of a small concurrent protocol under the C++20 memory model. The protocol is a
// template over an atomics policy; production gives it std::atomic, a test gives it Explored. explore()
// then tries every order of the threads' operations, every message that a load may read, and every point
// at which a thread may die, and stops at the first execution in which a check fails, with its trace.
//
// Thread safety: one exploration at a time, on one kernel thread; the scenario's threads are fibers.
//
// The memory model, operational and by views:
// 1. A location has its messages in modification order: a value, and the view that it releases. A view
//    says of each location how far it is known. A load reads any message that its thread's view does not
//    place behind it; a store goes behind any such message, but never between a read-modify-write and the
//    message that it read, which is its predecessor.
// 2. An acquire load joins the message's view into its thread's; a relaxed one keeps it for the next
//    acquire fence. A release store releases its thread's view, a relaxed one that of the last release
//    fence; a read-modify-write also releases what the message before it did (release sequences).
// 3. seq_cst operations and fences have one order, with what C++20 demands of it and no more
//    (explorer_seq_cst.h); a choice that leaves none is not offered. So a seq_cst store is no fence: a
//    weaker load behind it may overtake it, as on AArch64 (STLR, LDR), and a seq_cst load may overtake a
//    weaker store, as on x86 (MOV, MOV). A model that puts fences around them would hide both bugs.
//
// The search:
// 4. Depth first; each execution replays the choices before the one that changes. Two choices of
//    different threads commute unless both write behind the same message, so sleep sets leave one order
//    of the others: executions are counted once for each way to read and write, not for each interleaving.
// 5. A thread that dies never runs again; what it has stored stays. `dead` of it is then stored, with
//    release: as the kernel tells of a death, or lets go of a lock.
//
// Limits:
// - Nothing reads from a store that comes later in the search: executions in which a store is visible
//   before an earlier relaxed load of its thread has read (load buffering: x86 has none, AArch64 allows
//   it) are not tried. All others that C++20 allows are, so those of x86 and AArch64 are.
// - Threads share Atomic and Plain alone (results go to variables of each thread's own), do the same
//   again with the same values, and hold no memory of their own: one that dies or is cut is abandoned.
// - Atomics are integers, enums, pointers and bools; made by `setup` or inside it, used by its end.
//   compare_exchange_strong only. Sizes are limited by the constants below, and checked.
// - A loop that waits calls Memory::pause(); an execution that pauses too often, or takes too many steps,
//   is cut, and counted.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

namespace pgalloc::native_tests {

namespace exploring {

class Engine;

constexpr uint32_t kThreadsMax = 7;
constexpr uint32_t kSlotsMax = 64;  // threads, and locations
constexpr uint32_t kNodesMax = 64;  // seq_cst operations of one execution

enum class Kind : uint8_t { kLoad, kStore, kExchange, kAdd, kCompareExchange, kFence, kPause };

struct Operation {
  Kind kind = Kind::kPause;
  uint32_t location = 0;
  std::memory_order order = std::memory_order_relaxed;
  std::memory_order order_failed = std::memory_order_relaxed;  // of a compare-exchange
  uint64_t operand = 0;
  uint64_t expected = 0;
  uint64_t mask = ~uint64_t{0};  // of the location's type
};

// What the engine does for the types below. operate() returns the value that was read.
uint32_t add_location(uint64_t value);
void name_location(uint32_t location, std::string name);
uint64_t operate(const Operation& operation);
uint32_t add_plain();
void use_plain(uint32_t plain, bool writes);

}  // namespace exploring

// The atomics policy.
struct Explored {
  template <class T>
  class Atomic {
   public:
    Atomic(T value = T()) : location_(exploring::add_location(bits(value))) {}
    Atomic(const Atomic&) = delete;
    Atomic& operator=(const Atomic&) = delete;

    using Order = std::memory_order;
    T load(Order order = Order::seq_cst) const { return change(Kind::kLoad, order, 0); }
    void store(T value, Order order = Order::seq_cst) { change(Kind::kStore, order, bits(value)); }
    T exchange(T value, Order order = Order::seq_cst) {
      return change(Kind::kExchange, order, bits(value));
    }
    T fetch_add(T value, Order order = Order::seq_cst) {
      return change(Kind::kAdd, order, bits(value));
    }
    T fetch_sub(T value, Order order = Order::seq_cst) {
      return change(Kind::kAdd, order, uint64_t{0} - bits(value));
    }
    bool compare_exchange_strong(T& expected, T value, Order order, Order order_failed) {
      const uint64_t read = exploring::operate(
          {Kind::kCompareExchange, location_, order, order_failed, bits(value), bits(expected)});
      const bool changed = read == bits(expected);
      expected = from(read);
      return changed;
    }
    bool compare_exchange_strong(T& expected, T value, Order order = Order::seq_cst) {
      const Order failed = order == Order::acq_rel   ? Order::acquire
                           : order == Order::release ? Order::relaxed
                                                     : order;
      return compare_exchange_strong(expected, value, order, failed);
    }

    // For a test: what traces call it.
    void name(std::string name) { exploring::name_location(location_, std::move(name)); }
    uint32_t location() const { return location_; }

   private:
    using Kind = exploring::Kind;
    static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
    static constexpr uint64_t kMask = ~uint64_t{0} >> (64 - 8 * sizeof(T));

    static uint64_t bits(T value) {
      uint64_t bits = 0;
      std::memcpy(&bits, &value, sizeof(T));
      return bits;
    }
    static T from(uint64_t bits) {
      T value;
      std::memcpy(&value, &bits, sizeof(T));
      return value;
    }
    T change(Kind kind, Order order, uint64_t operand) const {
      return from(exploring::operate({kind, location_, order, order, operand, 0, kMask}));
    }

    uint32_t location_;
  };

  // Data that no atomic operation touches. An access that another one, of which one writes, does not
  // happen before is a data race, and fails the execution.
  template <class T>
  class Plain {
   public:
    explicit Plain(T value = T()) : plain_(exploring::add_plain()), value_(value) {}
    T get() const {
      exploring::use_plain(plain_, false);
      return value_;
    }
    void set(T value) {
      exploring::use_plain(plain_, true);
      value_ = value;
    }

   private:
    uint32_t plain_;
    T value_;
  };

  static void fence(std::memory_order order) {
    exploring::operate({exploring::Kind::kFence, 0, order});
  }
  static void pause() { exploring::operate({}); }
};

// One scenario, as `setup` builds it anew for each execution. What is stored before the threads run is
// known to all of them; `finally` sees the end of every modification order.
class Scenario {
 public:
  // Lives as long as the execution.
  template <class T, class... Arguments>
  T& make(Arguments&&... arguments) {
    auto made = std::make_shared<T>(std::forward<Arguments>(arguments)...);
    kept_.push_back(made);
    return *made;
  }
  void thread(std::string name, std::function<void()> body);
  // It may die before each of its operations. True once it is known to be dead.
  Explored::Atomic<bool>& mortal_thread(std::string name, std::function<void()> body);
  // After all threads have ended, or died.
  void finally(std::function<void()> body) { finally_ = std::move(body); }

  // In a thread or in `finally`: if it does not hold the execution fails, and ends.
  static void check(bool holds, const char* what);

 private:
  friend class exploring::Engine;
  std::deque<std::shared_ptr<void>> kept_;
  std::function<void()> finally_;
};

struct Exploration {
  uint64_t executions = 0;  // which have ended
  uint64_t redundant = 0;   // given up as others of the same meaning were tried
  uint64_t cut = 0;         // at a bound
  std::string failure;      // the check that failed and the trace; empty if none did
};

struct Bounds {
  uint32_t steps_max = 300;  // of an execution
  uint32_t pauses_max = 2;   // of a thread in it
};

// All executions; or `runs` random ones, which may be of larger scenarios.
Exploration explore(const std::function<void(Scenario&)>& setup, Bounds bounds = {});
Exploration explore_randomly(uint64_t seed, uint64_t runs,
                             const std::function<void(Scenario&)>& setup, Bounds bounds = {});

}  // namespace pgalloc::native_tests
