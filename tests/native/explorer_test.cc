// The memory model by litmus tests: exactly the outcomes of C++20 (without load buffering) are seen. Then
// small protocols as they are to be checked with it, each with planted bugs that it has to find.

#include "native/explorer.h"

#include <algorithm>
#include <array>
#include <set>
#include <stdexcept>
#include <vector>

#include "native/support.h"

namespace pgalloc::explorer_test {
namespace {

using native_tests::Exploration;
using native_tests::explore;
using native_tests::explore_randomly;
using native_tests::Explored;
using native_tests::Random;
using native_tests::Scenario;
using Order = std::memory_order;
using Int = Explored::Atomic<int>;

constexpr Order relaxed = Order::relaxed, acquire = Order::acquire, release = Order::release,
                acq_rel = Order::acq_rel, seq_cst = Order::seq_cst;

// --- Litmus tests --------------------------------------------------------------------------------

struct Litmus {
  Int x, y, z;
  int a = -1, b = -1, c = -1, d = -1;  // what was read
};
using Body = void (*)(Litmus&);
using Outcomes = std::set<std::vector<int>>;

// What was read, and at the end is in x and y if that is asked for. Random executions see no more.
Outcomes outcomes(std::vector<Body> threads, bool with_end = false) {
  Outcomes seen;
  const auto setup = [&](Scenario& scenario) {
    auto& litmus = scenario.make<Litmus>();
    for (const Body body : threads) scenario.thread("thread", [&litmus, body] { body(litmus); });
    scenario.finally([&, with_end] {
      std::vector<int> outcome;
      for (const int read : {litmus.a, litmus.b, litmus.c, litmus.d}) {
        if (read != -1) outcome.push_back(read);
      }
      if (with_end) outcome.insert(outcome.end(), {litmus.x.load(), litmus.y.load()});
      seen.insert(outcome);
    });
  };
  const Exploration done = explore(setup);
  EXPECT_EQ(done.failure, "");
  EXPECT_EQ(done.cut, 0u);
  const Outcomes all = seen;
  EXPECT_EQ(explore_randomly(1, 500, setup).failure, "");
  EXPECT_EQ(seen, all);
  return all;
}

const Outcomes kAll = {{0, 0}, {0, 1}, {1, 0}, {1, 1}};
const Outcomes kNotBothOld = {{0, 1}, {1, 0}, {1, 1}};

template <Order store, Order load>
Outcomes store_buffering() {
  return outcomes({[](Litmus& l) { l.x.store(1, store), l.a = l.y.load(load); },
                   [](Litmus& l) { l.y.store(1, store), l.b = l.x.load(load); }});
}

TEST(stores_wait_in_buffers_unless_both_sides_are_seq_cst) {
  EXPECT_EQ((store_buffering<relaxed, relaxed>()), kAll);
  EXPECT_EQ((store_buffering<release, acquire>()), kAll);
  EXPECT_EQ((store_buffering<seq_cst, seq_cst>()), kNotBothOld);
  // AArch64 lets a load overtake a seq_cst store, x86 lets a seq_cst load overtake a store.
  EXPECT_EQ((store_buffering<seq_cst, acquire>()), kAll);
  EXPECT_EQ((store_buffering<release, seq_cst>()), kAll);
}

template <Order first, Order second>
Outcomes store_buffering_with_fences() {
  return outcomes(
      {[](Litmus& l) { l.x.store(1, relaxed), Explored::fence(first), l.a = l.y.load(relaxed); },
       [](Litmus& l) { l.y.store(1, relaxed), Explored::fence(second), l.b = l.x.load(relaxed); }});
}

TEST(three_seq_cst_stores_do_not_all_wait) {
  const Outcomes seen = outcomes({[](Litmus& l) { l.x.store(1), l.a = l.y.load(); },
                                  [](Litmus& l) { l.y.store(1), l.b = l.z.load(); },
                                  [](Litmus& l) { l.z.store(1), l.c = l.x.load(); }});
  EXPECT_EQ(seen.size(), 7u);
  EXPECT(!seen.contains({0, 0, 0}));
}

TEST(fences_empty_the_buffers_if_both_are_seq_cst) {
  EXPECT_EQ((store_buffering_with_fences<seq_cst, seq_cst>()), kNotBothOld);
  EXPECT_EQ((store_buffering_with_fences<seq_cst, acq_rel>()), kAll);
}

template <Order change, Order load>
Outcomes store_buffering_with_changes() {
  return outcomes({[](Litmus& l) { l.x.fetch_add(1, change), l.a = l.y.load(load); },
                   [](Litmus& l) { l.y.exchange(1, change), l.b = l.x.load(load); }});
}

TEST(read_modify_writes_order_as_their_order_says) {
  EXPECT_EQ((store_buffering_with_changes<acq_rel, acquire>()), kAll);
  EXPECT_EQ((store_buffering_with_changes<seq_cst, acquire>()), kAll);
  EXPECT_EQ((store_buffering_with_changes<seq_cst, seq_cst>()), kNotBothOld);
}

TEST(a_fence_and_seq_cst_operations_order_each_other) {
  const Body fence = [](Litmus& l) {
    l.x.store(1, relaxed), Explored::fence(seq_cst), l.a = l.y.load(relaxed);
  };
  EXPECT_EQ(outcomes({fence, [](Litmus& l) { l.y.fetch_add(1), l.b = l.x.load(); }}), kNotBothOld);
  EXPECT_EQ(outcomes({fence, [](Litmus& l) { l.y.fetch_add(1), l.b = l.x.load(acquire); }}), kAll);
}

template <Order store, Order load>
Outcomes message_passing() {
  return outcomes({[](Litmus& l) { l.x.store(1, relaxed), l.y.store(1, store); },
                   [](Litmus& l) { l.a = l.y.load(load), l.b = l.x.load(relaxed); }});
}

TEST(a_message_brings_what_was_before_it_by_release_and_acquire) {
  const Outcomes passed = {{0, 0}, {0, 1}, {1, 1}};
  EXPECT_EQ((message_passing<relaxed, relaxed>()), kAll);
  EXPECT_EQ((message_passing<release, relaxed>()), kAll);
  EXPECT_EQ((message_passing<relaxed, acquire>()), kAll);
  EXPECT_EQ((message_passing<release, acquire>()), passed);
  EXPECT_EQ(outcomes({[](Litmus& l) {
                        l.x.store(1, relaxed), Explored::fence(release), l.y.store(1, relaxed);
                      },
                      [](Litmus& l) {
                        l.a = l.y.load(relaxed), Explored::fence(acquire), l.b = l.x.load(relaxed);
                      }}),
            passed);
  // A store behind a seq_cst one may be seen before it (STLR, STR), even by a seq_cst load.
  EXPECT_EQ(outcomes({[](Litmus& l) { l.x.store(1), l.y.store(1, relaxed); },
                      [](Litmus& l) { l.a = l.y.load(relaxed), l.b = l.x.load(); }}),
            kAll);
}

template <Order failed>
Outcomes message_passing_to_a_compare_exchange() {
  return outcomes({[](Litmus& l) { l.x.store(1, relaxed), l.y.store(1, release); },
                   [](Litmus& l) {
                     l.a = 7, l.y.compare_exchange_strong(l.a, 8, acq_rel, failed);
                     l.b = l.x.load(relaxed);
                   }});
}

TEST(a_compare_exchange_that_fails_is_a_load_of_its_own_order) {
  EXPECT_EQ((message_passing_to_a_compare_exchange<acquire>()), (Outcomes{{0, 0}, {0, 1}, {1, 1}}));
  EXPECT_EQ((message_passing_to_a_compare_exchange<relaxed>()), kAll);
}

// Store buffering, one side of which is two threads.
template <Order store, Order load>
bool store_is_delayed_behind_a_message() {
  return outcomes({[](Litmus& l) { l.x.store(1), l.z.store(1, store); },
                   [](Litmus& l) { l.a = l.z.load(load), l.b = l.y.load(); },
                   [](Litmus& l) { l.y.store(1), l.c = l.x.load(); }})
      .contains({1, 0, 0});
}

TEST(the_order_of_seq_cst_follows_messages) {
  EXPECT((!store_is_delayed_behind_a_message<release, acquire>()));
  EXPECT((store_is_delayed_behind_a_message<release, relaxed>()));
  EXPECT((store_is_delayed_behind_a_message<relaxed, acquire>()));
}

TEST(a_release_sequence_goes_on_through_read_modify_writes_alone) {
  const Body sender = [](Litmus& l) { l.x.store(1, relaxed), l.y.store(1, release); };
  const Body receiver = [](Litmus& l) { l.a = l.y.load(acquire), l.b = l.x.load(relaxed); };
  const Outcomes added = outcomes({sender, [](Litmus& l) { l.y.fetch_add(1, relaxed); }, receiver});
  EXPECT_EQ(added, (Outcomes{{0, 0}, {0, 1}, {1, 0}, {1, 1}, {2, 1}}));
  const Outcomes stored = outcomes({sender, [](Litmus& l) { l.y.store(2, relaxed); }, receiver});
  EXPECT_EQ(stored, (Outcomes{{0, 0}, {0, 1}, {1, 1}, {2, 0}, {2, 1}}));
}

TEST(what_is_read_never_gets_older) {
  EXPECT_EQ(outcomes({[](Litmus& l) { l.x.store(1, relaxed), l.x.store(2, relaxed); },
                      [](Litmus& l) { l.a = l.x.load(relaxed), l.b = l.x.load(relaxed); }}),
            (Outcomes{{0, 0}, {0, 1}, {0, 2}, {1, 1}, {1, 2}, {2, 2}}));
}

template <Order store, Order load>
bool readers_may_disagree() {  // IRIW
  return outcomes({[](Litmus& l) { l.x.store(1, store); }, [](Litmus& l) { l.y.store(1, store); },
                   [](Litmus& l) { l.a = l.x.load(load), l.b = l.y.load(load); },
                   [](Litmus& l) { l.c = l.y.load(load), l.d = l.x.load(load); }})
      .contains({1, 0, 1, 0});
}

TEST(readers_may_disagree_about_two_writers_unless_all_is_seq_cst) {
  EXPECT((readers_may_disagree<release, acquire>()));
  EXPECT((!readers_may_disagree<seq_cst, seq_cst>()));
}

template <Order order>
Outcomes ends_of_two_writers() {  // 2+2W
  return outcomes({[](Litmus& l) { l.x.store(1, order), l.y.store(2, order); },
                   [](Litmus& l) { l.y.store(1, order), l.x.store(2, order); }},
                  true);
}

TEST(each_location_has_a_modification_order_of_its_own) {
  const Outcomes of_interleavings = {{1, 2}, {2, 1}, {2, 2}};
  EXPECT_EQ(ends_of_two_writers<release>(), (Outcomes{{1, 1}, {1, 2}, {2, 1}, {2, 2}}));
  EXPECT_EQ(ends_of_two_writers<seq_cst>(), of_interleavings);
}

TEST(no_read_modify_write_is_lost) {
  EXPECT_EQ(outcomes({[](Litmus& l) { l.x.fetch_add(1, relaxed); },
                      [](Litmus& l) { l.x.fetch_add(2, relaxed); },
                      [](Litmus& l) { l.x.fetch_sub(8, relaxed); }},
                     true),
            (Outcomes{{-5, 0}}));
  const Body in_two = [](Litmus& l) { l.x.store(l.x.load(relaxed) + 1, relaxed); };
  EXPECT_EQ(outcomes({in_two, in_two}, true), (Outcomes{{1, 0}, {2, 0}}));
  // One wins; the loser reads what the winner wrote.
  EXPECT_EQ(outcomes({[](Litmus& l) { l.a = 0, l.x.compare_exchange_strong(l.a, 1); },
                      [](Litmus& l) { l.b = 0, l.x.compare_exchange_strong(l.b, 2); }},
                     true),
            (Outcomes{{0, 1, 1, 0}, {2, 0, 2, 0}}));
}

// --- The search ----------------------------------------------------------------------------------

TEST(executions_differ_in_what_is_read_and_written) {
  const auto count = [](std::vector<Body> threads) {
    return explore([&](Scenario& scenario) {
             auto& litmus = scenario.make<Litmus>();
             for (const Body body : threads) scenario.thread("", [&litmus, body] { body(litmus); });
           })
        .executions;
  };
  const Body store_x = [](Litmus& l) { l.x.store(1, relaxed); };
  const Body store_y = [](Litmus& l) { l.y.store(1, relaxed); };
  const Body load_x = [](Litmus& l) { l.x.load(relaxed); };
  EXPECT_EQ(count({store_x, store_y}), 1u);
  EXPECT_EQ(count({store_x, load_x}), 2u);
  EXPECT_EQ(count({store_x, load_x, load_x, load_x}), 8u);
  const Body add = [](Litmus& l) { l.x.fetch_add(1, relaxed); };
  EXPECT_EQ(count({add, add, add}), 6u);
}

// Random programs on two locations: of two or three threads of three operations, or four of two.
struct Program {
  struct Instruction {
    int kind, location, value;
    Order load, store, change;  // for its kind
  };
  std::vector<std::vector<Instruction>> threads;

  Program(uint64_t seed, bool all_seq_cst) : threads(2 + seed % 3) {
    constexpr Order loads[] = {relaxed, acquire, seq_cst}, stores[] = {relaxed, release, seq_cst},
                    changes[] = {relaxed, acq_rel, seq_cst};
    Random random(seed);
    int value = 0;
    for (auto& thread : threads) {
      for (size_t count = threads.size() < 4 ? 3 : 2; count > 0; --count) {
        const uint64_t order = all_seq_cst ? 2 : random.below(3);
        thread.push_back({static_cast<int>(random.below(all_seq_cst ? 3 : 4)),
                          static_cast<int>(random.below(2)), ++value, loads[order], stores[order],
                          changes[order]});
      }
    }
  }

  // What the instruction reads, or nothing. The locations are Ints, or plain ones.
  template <class Locations>
  static void run(const Instruction& instruction, Locations& locations, std::vector<int>& reads) {
    auto& location = locations[instruction.location];
    if (instruction.kind == 0) reads.push_back(location.load(instruction.load));
    if (instruction.kind == 1) location.store(instruction.value, instruction.store);
    if (instruction.kind == 2) {
      reads.push_back(location.exchange(instruction.value, instruction.change));
    }
    if (instruction.kind == 3) Explored::fence(instruction.change);
  }

  static std::vector<int> outcome(std::vector<std::vector<int>> reads, int x, int y) {
    std::vector<int> all{x, y};
    for (const auto& of_thread : reads) all.insert(all.end(), of_thread.begin(), of_thread.end());
    return all;
  }

  auto setup(Outcomes& seen, bool may_die = false) const {
    return [this, &seen, may_die](Scenario& scenario) {
      struct State {
        Int locations[2];
        std::vector<std::vector<int>> reads{4};
      };
      auto& state = scenario.make<State>();
      for (size_t number = 0; number < threads.size(); ++number) {
        const auto body = [this, &state, number] {
          for (const Instruction& instruction : threads[number]) {
            run(instruction, state.locations, state.reads[number]);
          }
        };
        if (may_die && number == 0) {
          scenario.mortal_thread("mortal", body);
        } else {
          scenario.thread("thread", body);
        }
      }
      scenario.finally([&] {
        seen.insert(outcome(state.reads, state.locations[0].load(), state.locations[1].load()));
      });
    };
  }

  // One instruction after the other, in every order.
  void interleave(Outcomes& seen, std::vector<size_t> done, std::array<std::atomic<int>, 2>& now,
                  std::vector<std::vector<int>> reads) const {
    bool at_end = true;
    for (size_t number = 0; number < threads.size(); ++number) {
      if (done[number] == threads[number].size()) continue;
      at_end = false;
      std::array<std::atomic<int>, 2> next{now[0].load(), now[1].load()};
      auto next_reads = reads;
      auto next_done = done;
      run(threads[number][next_done[number]++], next, next_reads[number]);
      interleave(seen, next_done, next, next_reads);
    }
    if (at_end) seen.insert(outcome(reads, now[0], now[1]));
  }
};

TEST(seq_cst_alone_is_sequential_consistency) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    const Program program(seed, true);
    Outcomes seen, expected;
    EXPECT_EQ(explore(program.setup(seen)).failure, "");
    std::array<std::atomic<int>, 2> now{};
    program.interleave(expected, {0, 0, 0, 0}, now, std::vector<std::vector<int>>(4));
    EXPECT_EQ(seen, expected);
  }
}

TEST(random_executions_find_nothing_that_was_left_out) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    const Program program(seed, false);
    Outcomes all, some;
    EXPECT_EQ(explore(program.setup(all, seed % 5 == 0)).failure, "");
    EXPECT_EQ(explore_randomly(seed, 500, program.setup(some, seed % 5 == 0)).failure, "");
    EXPECT(std::ranges::includes(all, some));
  }
}

TEST(a_loop_that_waits_is_cut) {
  const Exploration done = explore([](Scenario& scenario) {
    auto& flag = scenario.make<Int>();
    scenario.thread("sets", [&] { flag.store(1, release); });
    scenario.thread("waits", [&] {
      while (flag.load(acquire) == 0) Explored::pause();
    });
  });
  EXPECT_EQ(done.failure, "");
  EXPECT_EQ(done.executions, 3u);  // with no pause, one, two
  EXPECT(done.cut > 0);
}

TEST(a_failed_check_tells_how_it_came_to_that) {
  const Exploration done = explore([](Scenario& scenario) {
    auto& litmus = scenario.make<Litmus>();
    litmus.x.name("x");
    scenario.mortal_thread("one", [&] {
      litmus.x.store(2, release);
      litmus.x.fetch_add(4, acq_rel);
    });
    scenario.thread("two", [&] { litmus.y.load(relaxed); });
    scenario.finally([&] { Scenario::check(litmus.x.load() != 2, "not two"); });
  });
  EXPECT_EQ(done.failure,
            "not two\n"
            "  one: x.store 2, release (behind message 1 of 1)\n"
            "  one: dies before x.fetch_add 4, acq_rel\n"
            "  two: location 1.load, relaxed = 0 (reads message 1 of 1)\n");
  const Exploration thrown = explore([](Scenario& scenario) {
    scenario.thread("throws", [] { throw std::runtime_error("why"); });
  });
  EXPECT_EQ(thrown.failure, "exception: why\n");
}

template <Order store, Order load>
std::string hand_over_plain_data() {
  return explore([](Scenario& scenario) {
           auto& data = scenario.make<Explored::Plain<int>>();
           auto& flag = scenario.make<Int>();
           scenario.thread("gives", [&] { data.set(7), flag.store(1, store); });
           scenario.thread("takes", [&] {
             if (flag.load(load) == 1) Scenario::check(data.get() == 7, "seven");
           });
         })
      .failure;
}

TEST(a_data_race_is_found) {
  EXPECT_EQ((hand_over_plain_data<release, acquire>()), "");
  EXPECT((hand_over_plain_data<release, relaxed>().starts_with("data race")));
  EXPECT((hand_over_plain_data<relaxed, acquire>().starts_with("data race")));
}

// --- Protocols -----------------------------------------------------------------------------------

// Two words that change together. `kFence` is before the second look at the version.
template <class Memory, Order kFence = acquire, Order kVersion = release>
struct Seqlock {
  typename Memory::template Atomic<uint64_t> version, first, second;

  void write(uint64_t value) {
    const uint64_t before = version.load(relaxed);
    version.store(before + 1, relaxed);
    Memory::fence(release);
    first.store(value, relaxed);
    second.store(value, relaxed);
    version.store(before + 2, kVersion);
  }
  bool read(uint64_t* left, uint64_t* right) const {
    const uint64_t before = version.load(acquire);
    *left = first.load(relaxed);
    *right = second.load(relaxed);
    Memory::fence(kFence);
    return version.load(relaxed) == before && before % 2 == 0;
  }
};

template <class Lock>
void seqlock_scenario(Scenario& scenario) {
  auto& lock = scenario.make<Lock>();
  scenario.mortal_thread("writer", [&] { lock.write(1), lock.write(2); });
  for (const char* name : {"reader", "other reader"}) {
    scenario.thread(name, [&] {
      uint64_t left = 0, right = 0;
      if (lock.read(&left, &right)) Scenario::check(left == right, "torn");
    });
  }
}

TEST(a_seqlock_is_never_torn_by_its_orders) {
  const Exploration done = explore(seqlock_scenario<Seqlock<Explored>>);
  EXPECT_EQ(done.failure, "");
  EXPECT(done.executions > 1000);
  const Exploration no_fence = explore(seqlock_scenario<Seqlock<Explored, relaxed>>);
  EXPECT(no_fence.failure.starts_with("torn"));
  const Exploration wrong_fence = explore(seqlock_scenario<Seqlock<Explored, release>>);
  EXPECT(wrong_fence.failure.starts_with("torn"));
  const Exploration no_release = explore(seqlock_scenario<Seqlock<Explored, acquire, relaxed>>);
  EXPECT(no_release.failure.starts_with("torn"));
  EXPECT(explore_randomly(1, 20'000, seqlock_scenario<Seqlock<Explored, relaxed>>)
             .failure.starts_with("torn"));
}

// A reader announces itself, then asks which of two buffers is the current one. The writer makes the other
// one the current one, and uses the first again if no living reader has announced itself.
struct Orders {
  Order announce = seq_cst, look = seq_cst, change = seq_cst, count = seq_cst, leave = release;
};

template <class Memory>
struct Hazard {
  typename Memory::template Atomic<uint32_t> current, counts[2];
  Explored::Plain<int> buffers[2];

  void read(uint32_t reader, Orders orders) {
    counts[reader].fetch_add(1, orders.announce);
    Scenario::check(buffers[current.load(orders.look)].get() >= 0, "used again");
    counts[reader].fetch_sub(1, orders.leave);
  }
  template <class IsDead>
  void write(uint32_t readers, Orders orders, IsDead is_dead) {
    buffers[1].set(1);
    current.store(1, orders.change);
    for (uint32_t reader = 0; reader < readers; ++reader) {
      if (counts[reader].load(orders.count) != 0 && !is_dead(reader)) return;
    }
    buffers[0].set(-1);
  }
};

Exploration explore_hazard(Orders orders) {
  return explore([=](Scenario& scenario) {
    auto& hazard = scenario.make<Hazard<Explored>>();
    for (const uint32_t reader : {0, 1}) {
      scenario.thread("reader", [&hazard, orders, reader] { hazard.read(reader, orders); });
    }
    scenario.thread("writer",
                    [&hazard, orders] { hazard.write(2, orders, [](uint32_t) { return false; }); });
  });
}

TEST(what_a_reader_has_announced_is_not_used_again) {
  EXPECT_EQ(explore_hazard({}).failure, "");
  const Orders weaker[] = {{.announce = acq_rel}, {.look = acquire},
                           {.change = release},   {.count = acquire},
                           {.leave = relaxed},    {acq_rel, acquire, release, acquire, release}};
  for (const Orders& orders : weaker) EXPECT(explore_hazard(orders).failure != "");
}

// The first reader may die. Each has a count, or both use the first one's.
Exploration explore_deaths(bool own_counts, Order order_of_death, bool* reused) {
  return explore([=](Scenario& scenario) {
    auto& hazard = scenario.make<Hazard<Explored>>();
    const uint32_t second = own_counts ? 1 : 0;
    auto& dead = scenario.mortal_thread("mortal", [&] { hazard.read(0, {}); });
    scenario.thread("reader", [&hazard, second] { hazard.read(second, {}); });
    scenario.thread("writer", [&, second, order_of_death, reused] {
      hazard.write(second + 1, {}, [&](uint32_t reader) {
        const bool is_dead = reader == 0 && dead.load(order_of_death);
        *reused = *reused || is_dead;
        return is_dead;
      });
    });
  });
}

TEST(the_dead_hold_nothing_and_the_living_lose_nothing_by_a_death) {
  bool reused = false;
  EXPECT_EQ(explore_deaths(true, acquire, &reused).failure, "");
  EXPECT(reused);
  EXPECT(explore_deaths(false, acquire, &reused).failure != "");
  EXPECT(explore_deaths(true, relaxed, &reused).failure.starts_with("data race"));
}

}  // namespace
}  // namespace pgalloc::explorer_test
