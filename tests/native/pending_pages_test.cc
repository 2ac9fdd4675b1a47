#include "pages/pending_pages.h"

#include <array>
#include <functional>
#include <new>

#include "native/memory.h"
#include "native/support.h"

namespace pgalloc::pending_pages_test {
namespace {

using native_tests::page_of;
using native_tests::pages;
using native_tests::Random;
using native_tests::random_pages;
using native_tests::runs_where;

constexpr uint64_t kPages = 60;

// The same page by page.
struct Model {
  struct Page {
    std::optional<Arrival> arrival;
    uint32_t error = 0;
  };
  std::array<Page, kPages> page;
  uint64_t expected = 0;
  uint64_t forgotten = 0;

  using Test = std::function<bool(const Page&)>;
  uint64_t count(FileRange range, const Test& test) const {
    uint64_t n = 0;
    for (uint64_t i = page_of(range.start); i < page_of(range.end); ++i) n += test(page[i]);
    return n;
  }
  bool all(FileRange range, const Test& test) const {
    return count(range, test) == page_of(range.length());
  }
  std::vector<FileRange> runs_in(FileRange range, const Test& test) const {
    return runs_where(kPages,
                      [&](uint64_t i) { return range.contains(i * page_size()) && test(page[i]); });
  }
  void set(FileRange range, std::optional<Arrival> arrival, uint32_t error = 0) {
    for (uint64_t i = page_of(range.start); i < page_of(range.end); ++i) {
      page[i] = {arrival, error};
    }
  }
};

constexpr Arrival kArrivals[] = {Arrival::kWaiting, Arrival::kArriving, Arrival::kBroken,
                                 Arrival::kLeaving};

void compare(const PendingPages& pending, const Model& model, FileRange range) {
  EXPECT_EQ(pending.verify(), std::nullopt);
  for (const Arrival arrival : kArrivals) {
    const auto test = [&](const Model::Page& page) { return page.arrival == arrival; };
    EXPECT_EQ(pending.bytes(arrival), model.count(pages(0, kPages), test) * page_size());
    const auto found = pending.find(range, arrival);
    EXPECT_EQ(found.has_value(), model.count(range, test) > 0);
    if (arrival == Arrival::kBroken) {
      const auto error = pending.find_error(range);
      EXPECT_EQ(error.has_value(), found.has_value());
      if (error && found) EXPECT_EQ(*error, model.page[page_of(found->start)].error);
    } else {
      const auto runs = model.runs_in(range, test);
      if (found && !runs.empty()) EXPECT_EQ(*found, runs.front());
    }
  }
  const auto at_rest = model.runs_in(
      range, [](const Model::Page& page) { return page.arrival != Arrival::kArriving; });
  EXPECT_EQ(pending.first_at_rest(range),
            at_rest.empty() ? std::nullopt : std::optional(at_rest.front()));
  EXPECT_EQ(pending.expected_bytes(), model.expected * page_size());
  EXPECT_EQ(pending.forgotten_bytes(), model.forgotten * page_size());
  EXPECT_EQ(pending.empty(),
            model.all(pages(0, kPages), [](const Model::Page& page) { return !page.arrival; }));
}

void step(PendingPages& pending, Model& model, Random& random) {
  const FileRange range = random_pages(random, kPages, 10);
  const auto in = [](Arrival arrival) {
    return [arrival](const Model::Page& page) { return page.arrival == arrival; };
  };
  switch (random.below(7)) {
    case 0:
      if (!model.all(range, [](const Model::Page& page) { return !page.arrival; })) return;
      pending.expect(range);
      model.set(range, Arrival::kWaiting);
      model.expected += page_of(range.length());
      return;
    case 1: {
      const Arrival to = random.one_in(3) ? Arrival::kLeaving : Arrival::kArriving;
      const auto runs = model.runs_in(range, in(Arrival::kWaiting));
      EXPECT_EQ(pending.start(range, to), runs);
      for (const FileRange& run : runs) model.set(run, to);
      return;
    }
    case 2:
      if (!model.all(range, in(Arrival::kArriving))) return;
      pending.arrived(range);
      model.set(range, std::nullopt);
      return;
    case 3: {
      if (!model.all(range, in(Arrival::kArriving))) return;
      const auto error = static_cast<uint32_t>(random.below(3));
      pending.broke(range, error);
      model.set(range, Arrival::kBroken, error);
      return;
    }
    case 4:
      if (!model.all(range, in(Arrival::kLeaving))) return;
      pending.drop(range);
      model.set(range, std::nullopt);
      model.forgotten += page_of(range.length());
      return;
    case 5:
      if (!model.all(range, in(Arrival::kLeaving)) && !model.all(range, in(Arrival::kArriving))) {
        return;
      }
      pending.put_back(range);
      model.set(range, Arrival::kWaiting);
      return;
    default:
      pending.forget(range);
      for (const FileRange& run : model.runs_in(range, in(Arrival::kWaiting))) {
        model.set(run, std::nullopt);
        model.forgotten += page_of(run.length());
      }
      for (const FileRange& run : model.runs_in(range, in(Arrival::kBroken))) {
        model.set(run, std::nullopt);
      }
  }
}

TEST(random_steps_equal_the_model) {
  for (uint64_t seed = 0; seed < 10; ++seed) {
    Random random(seed);
    PendingPages pending;
    Model model;
    for (int i = 0; i < 600 && native_tests::failures == 0; ++i) {
      step(pending, model, random);
      compare(pending, model, random_pages(random, kPages, 20));
    }
    pending.clear();
    compare(pending, Model(), pages(0, kPages));
  }
}

TEST(what_there_is_no_memory_for_is_not_expected) {
  PendingPages pending;
  native_tests::allocations_left = 0;
  bool thrown = false;
  try {
    pending.expect(pages(0, 4));
  } catch (const std::bad_alloc&) {
    thrown = true;
  }
  native_tests::allocations_left = -1;
  EXPECT(thrown);
  compare(pending, Model(), pages(0, kPages));
}

TEST(what_arrives_or_leaves_is_not_forgotten) {
  PendingPages pending;
  pending.expect(pages(0, 4));
  pending.start(pages(1, 2));
  pending.start(pages(2, 3), Arrival::kLeaving);
  pending.forget(pages(0, 4));
  EXPECT_EQ(pending.bytes(Arrival::kArriving), page_size());
  EXPECT_EQ(pending.bytes(Arrival::kLeaving), page_size());
  EXPECT_EQ(pending.outstanding_bytes(), 2 * page_size());
  EXPECT_EQ(pending.forgotten_bytes(), 2 * page_size());
}

}  // namespace
}  // namespace pgalloc::pending_pages_test
