// Purpose: shows that SegmentSet does what a naive model does, that running out of memory leaves it
// as it was, and how fast it is.
//
//   segment_set_driver [--operations N] [--seed S]   random operations against the model
//   segment_set_driver --plant                       the same with a planted bug: must fail
//   segment_set_driver --bench                       nanoseconds per operation
//
// The model is in tests/native/segment_model.h.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/units.h"
#include "native/memory.h"
#include "native/segment_model.h"
#include "segment/segment_set.h"
#include "torture/random.h"

// Not inlined, so that valgrind can put its own in the place of all of them.
[[gnu::noinline]] void* operator new(size_t size) {
  if (pgalloc::native_tests::memory_runs_out()) throw std::bad_alloc();
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace {

namespace native_tests = pgalloc::native_tests;
using native_tests::EmptyTraits;
using native_tests::SegmentComparison;
using native_tests::SmallTraits;
using native_tests::UsageTraits;
using native_tests::UsageValue;
using pgalloc::FileRange;
using pgalloc::segment::SegmentSet;
using pgalloc::torture::Random;

struct PlantedTraits : SmallTraits {
  static constexpr bool kPlantedBug = true;
};

int compare_all(uint64_t operations, uint64_t seed, bool plant) try {
  if (plant) {
    SegmentComparison<PlantedTraits>({4000, 1, 40, 300, 1}, seed).run(operations);
    return 0;
  }
  const uint64_t share = operations / 10;
  native_tests::compare_segment_sets(share, share, seed, [&](const char* name) {
    std::printf("ok %-24s %llu operations\n", name, static_cast<unsigned long long>(share));
    std::fflush(stdout);
  });
  return 0;
} catch (const native_tests::SegmentDifference& difference) {
  std::printf("FAILED %s\n", difference.what());
  return 1;
}

// --- The benchmark -------------------------------------------------------------------------------

constexpr uint64_t kPage = 4096;

using UsageSet = SegmentSet<UsageTraits>;
constexpr UsageValue kUsed{1, 0, 1, 0};
constexpr UsageValue kWaste{0, 0, 0, 0};

FileRange page_at(uint64_t index) { return {index * kPage, (index + 1) * kPage}; }

// Prints the median time of one of `operations` operations; `work` does them all.
template <class Prepare, class Work>
void measure(const char* workload, uint64_t operations, Prepare prepare, Work work) {
  std::vector<double> figures;
  for (int repeat = 0; repeat < 5; ++repeat) {
    prepare();
    const auto begin = std::chrono::steady_clock::now();
    work();
    const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - begin;
    figures.push_back(time.count() / static_cast<double>(operations));
  }
  std::sort(figures.begin(), figures.end());
  std::printf("%-72s %8.1f ns\n", workload, figures[2]);
}
template <class Work>
void measure(const char* workload, uint64_t operations, Work work) {
  measure(workload, operations, [] {}, work);
}

void require(bool condition) {
  if (condition) return;
  std::printf("FAILED: the benchmark does not do what it says\n");
  std::exit(1);
}

void set_refs(UsageSet& set, FileRange range, uint32_t refs) {
  set.mutate_range(range, [&](FileRange, UsageValue& value) { value.refs = refs; });
}

// `holes` used pages, each followed by a free one, made the way the allocator does: every second
// page of one segment is marked as waste, then removed.
UsageSet checkered(uint64_t holes) {
  UsageSet set;
  set.insert({0, 2 * holes * kPage}, kUsed);
  for (uint64_t i = 0; i < holes; ++i) {
    const FileRange page = page_at(2 * i + 1);
    set.mutate_range(page, [&](FileRange, UsageValue& value) { value = kWaste; });
    set.remove_range(page);
  }
  return set;
}

void bench_pairs() {
  constexpr uint64_t kRounds = 1'000'000;
  UsageSet set;
  set.insert({0, 64 * kPage}, kUsed);
  measure("find, insert, mark as waste, remove one page: small set", kRounds, [&] {
    for (uint64_t i = 0; i < kRounds; ++i) {
      const auto gap = set.first_large_enough_gap(kPage, kPage);
      const FileRange page{gap.start(), gap.start() + kPage};
      set.insert_at(gap, page, kUsed);
      set.mutate_range(page, [](FileRange, UsageValue& value) { value = kWaste; });
      set.remove_range(page);
    }
  });
  SegmentSet<EmptyTraits> waste;
  measure("insert and remove one range: set without values", kRounds, [&] {
    for (uint64_t i = 0; i < kRounds; ++i) {
      waste.insert(page_at(i), {});
      waste.remove(waste.first());
    }
  });
  set.clear();
  set.insert({0, uint64_t{1} << 30}, kUsed);
  const FileRange part{uint64_t{1} << 29, (uint64_t{1} << 29) + 16 * kPage};
  measure("mutate the middle of one segment, 1 to 3 and back, pair", kRounds, [&] {
    for (uint64_t i = 0; i < kRounds; ++i) {
      set_refs(set, part, 2);
      set_refs(set, part, 1);
    }
  });
}

// The same among `segments` segments, at random places.
void bench_outstanding(uint64_t segments) {
  constexpr uint64_t kRounds = 400'000;
  UsageSet set;
  for (uint64_t i = 0; i < segments; ++i) {
    const FileRange range{i * 32 * kPage, (i + 1) * 32 * kPage};
    set.insert_without_merging(range, {static_cast<uint32_t>(1 + i % 2), 0, 1, 0});
  }
  Random random(1);
  std::vector<uint64_t> starts;
  for (uint64_t i = 0; i < kRounds; ++i) starts.push_back(random.below(segments) * 32 * kPage);
  std::string title = "mutate the middle of a random one of " + std::to_string(segments) + ", pair";
  measure(title.c_str(), kRounds, [&] {
    for (const uint64_t start : starts) {
      const FileRange part{start + 8 * kPage, start + 24 * kPage};
      const auto add = [](uint32_t difference) {
        return [=](FileRange, UsageValue& value) { value.refs += difference; };
      };
      set.mutate_range(part, add(5));
      set.mutate_range(part, add(-5u));
    }
  });
  title = "find a random one of " + std::to_string(segments);
  uint64_t sum = 0;
  measure(title.c_str(), kRounds, [&] {
    for (const uint64_t start : starts) sum += set.find(start + kPage).end();
  });
  require(sum > 0);
}

void bench_checkered() {
  constexpr uint64_t kHoles = 200'000;
  UsageSet set;
  measure("checker: mark every second page as waste and remove it", kHoles,
          [&] { set = checkered(kHoles); });
  require(set.size() == kHoles);
  std::printf("%-72s %8.1f\n", "bytes per hole", static_cast<double>(set.memory_bytes()) / kHoles);

  measure(
      "the same in two passes, all marked before any is removed", kHoles,
      [&] {
        set = UsageSet();
        set.insert({0, 2 * kHoles * kPage}, kUsed);
      },
      [&] {
        for (uint64_t i = 0; i < kHoles; ++i) set_refs(set, page_at(2 * i + 1), 0);
        for (uint64_t i = 0; i < kHoles; ++i) set.remove_range(page_at(2 * i + 1));
      });
  std::printf("%-72s %8.1f\n", "bytes per hole", static_cast<double>(set.memory_bytes()) / kHoles);

  measure(
      "find and fill the lowest hole", kHoles - 1, [&] { set = checkered(kHoles); },
      [&] {
        for (uint64_t i = 0; i + 1 < kHoles; ++i) {
          const auto gap = set.first_large_enough_gap(kPage, kPage);
          set.insert_at(gap, {gap.start(), gap.start() + kPage}, kUsed);
        }
      });
  require(set.size() == 1);
  measure(
      "find and fill the highest hole", kHoles - 1, [&] { set = checkered(kHoles); },
      [&] {
        const uint64_t file_end = 2 * kHoles * kPage - 1;
        for (uint64_t i = 0; i + 1 < kHoles; ++i) {
          const auto gap = set.upper_bound_large_enough_gap(file_end - kPage, kPage, kPage);
          set.insert_at(gap, {gap.end() - kPage, gap.end()}, kUsed);
        }
      });
  require(set.size() == 1);
  measure(
      "fill holes in random order", kHoles - 1, [&] { set = checkered(kHoles); },
      [&] {
        const uint64_t stride = 77'773;  // a prime
        for (uint64_t i = 1; i < kHoles; ++i) {
          const uint64_t hole = i * stride % kHoles;
          if (hole + 1 < kHoles) set.insert(page_at(2 * hole + 1), kUsed);
        }
      });

  set = checkered(kHoles);
  measure("insert two pages above all holes, merging", kHoles, [&] {
    for (uint64_t i = 0; i < kHoles; ++i) {
      const auto gap = set.last_gap();
      set.insert_at(gap, {gap.start(), gap.start() + 2 * kPage}, kUsed);
    }
  });
  const FileRange top = page_at(uint64_t{1} << 40);
  measure(
      "insert two pages top-down in the free space above all holes", kHoles,
      [&] {
        set = checkered(kHoles);
        set.insert(top, kUsed);
      },
      [&] {
        for (uint64_t i = 0; i < kHoles; ++i) {
          const auto gap = set.upper_bound_large_enough_gap(top.start - 1, 2 * kPage, kPage);
          set.insert_at(gap, {gap.end() - 2 * kPage, gap.end()}, kUsed);
        }
      });
  measure(
      "free all pages in order, one by one", kHoles, [&] { set = checkered(kHoles); },
      [&] {
        for (uint64_t i = 0; i < kHoles; ++i) set.remove_range(page_at(2 * i));
      });
  require(set.empty());
}

void bench_aligned(uint64_t gaps) {
  UsageSet set;
  // Gaps of 2 MiB that begin one page too late.
  for (uint64_t i = 0; i < gaps; ++i) {
    const uint64_t start = i * 2 * pgalloc::huge_page_size();
    set.insert({start, start + pgalloc::huge_page_size() + kPage}, kUsed);
    set.insert(
        {start + 2 * pgalloc::huge_page_size() - kPage, start + 2 * pgalloc::huge_page_size()},
        kUsed);
  }
  constexpr uint64_t kRounds = 200'000;
  const std::string title =
      "2 MiB past " + std::to_string(gaps) + " misaligned gaps: insert, remove";
  measure(title.c_str(), kRounds, [&] {
    for (uint64_t i = 0; i < kRounds; ++i) {
      const auto gap =
          set.first_large_enough_gap(pgalloc::huge_page_size(), pgalloc::huge_page_size());
      const uint64_t start = pgalloc::align_up(gap.start(), pgalloc::huge_page_size());
      const auto segment = set.insert_at(gap, {start, start + pgalloc::huge_page_size()}, kUsed);
      if (segment.range().length() == pgalloc::huge_page_size()) {
        set.remove(segment);
      } else {
        set.remove_range({start, start + pgalloc::huge_page_size()});
      }
    }
  });
}

void bench_sequential() {
  constexpr uint64_t kSegments = 400'000;
  UsageSet set;
  const auto value = [](uint64_t i) { return UsageValue{static_cast<uint32_t>(i), 0, 1, 0}; };
  measure(
      "insert in order, not merging", kSegments, [&] { set.clear(); },
      [&] {
        for (uint64_t i = 0; i < kSegments; ++i) set.insert(page_at(i), value(i));
      });
  std::printf("%-72s %8.1f\n", "bytes per segment",
              static_cast<double>(set.memory_bytes()) / kSegments);
  measure(
      "insert in descending order, not merging", kSegments, [&] { set.clear(); },
      [&] {
        for (uint64_t i = kSegments; i-- > 0;) set.insert(page_at(i), value(i));
      });
  std::printf("%-72s %8.1f\n", "bytes per segment",
              static_cast<double>(set.memory_bytes()) / kSegments);
  measure(
      "insert in random order, not merging", kSegments, [&] { set.clear(); },
      [&] {
        for (uint64_t i = 0; i < kSegments; ++i) {
          const uint64_t place = i * 177'787 % kSegments;
          set.insert(page_at(place), value(place));
        }
      });
  std::printf("%-72s %8.1f\n", "bytes per segment",
              static_cast<double>(set.memory_bytes()) / kSegments);
}

void bench_all() {
  bench_pairs();
  bench_outstanding(8'192);
  bench_outstanding(200'000);
  bench_checkered();
  for (const uint64_t gaps : {1'000, 4'000, 16'000}) bench_aligned(gaps);
  bench_sequential();
}

}  // namespace

int main(int argc, char** argv) {
  uint64_t operations = 1'000'000;
  uint64_t seed = 1;
  bool plant = false;
  bool bench = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view option = argv[i];
    if (option == "--plant") {
      plant = true;
    } else if (option == "--bench") {
      bench = true;
    } else if (option == "--operations" && i + 1 < argc) {
      operations = std::strtoull(argv[++i], nullptr, 10);
    } else if (option == "--seed" && i + 1 < argc) {
      seed = std::strtoull(argv[++i], nullptr, 10);
    } else {
      std::fprintf(stderr, "usage: %s [--operations N] [--seed S] [--plant] [--bench]\n", argv[0]);
      return 2;
    }
  }
  if (bench) {
    bench_all();
    return 0;
  }
  return compare_all(operations, seed, plant);
}
