// Purpose: the workloads of the core, without Python, beside the bare system calls. Prints a JSON
// line per workload and implementation: {workload, implementation, ops, ns_per_op, bytes, seconds,
// repeats}, where the times are medians over the repeats.
//
//   core_driver [--repeat N] [--round N] [WORKLOAD ...]      default: all of them, once
//
// `python -m benchmarks` runs it once for each of its own rounds (--round), so that the core takes
// turns with everything else.
#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <string_view>
#include <vector>

#include "native/measure.h"
#include "native/workloads.h"

namespace pgalloc::benchmarks {
namespace {

struct Workload {
  std::string_view name;
  Implementation run;
};

constexpr Workload kWorkloads[] = {
    {"pair", pair},
    {"two_threads", two_threads},
    {"sequence", sequence},
    {"every_second", every_second},
    {"fragmented_top_down", fragmented_top_down},
    {"fragmented_bottom_up", fragmented_bottom_up},
    {"misaligned_1k", misaligned_1k},
    {"misaligned_4k", misaligned_4k},
    {"misaligned_16k", misaligned_16k},
    {"references", references},
    {"references_8192", references_8192},
    {"map", map},
    {"populate", populate},
    {"commit", commit},
    {"free_populate", free_populate},
    {"give_back", give_back},
    {"update_usage", update_usage},
    {"evictables", evictables},
};

struct Figures {
  Sample first;  // all but the time is the same in each round
  std::vector<double> seconds;
};

uint64_t round_number = 0;
std::vector<Figures> all_figures;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

void print(const Figures& figures) {
  const Sample& sample = figures.first;
  const double seconds = median(figures.seconds);
  std::printf("{\"workload\": \"%.*s\", \"implementation\": \"%.*s\", \"ops\": %" PRIu64
              ", \"ns_per_op\": %.2f, \"bytes\": %" PRIu64
              ", \"seconds\": %.9f, \"repeats\": %zu}\n",
              static_cast<int>(sample.workload.size()), sample.workload.data(),
              static_cast<int>(sample.implementation.size()), sample.implementation.data(),
              sample.ops, seconds * 1e9 / static_cast<double>(sample.ops), sample.bytes, seconds,
              figures.seconds.size());
}

int usage(const char* program) {
  std::fprintf(stderr, "usage: %s [--repeat N] [--round N] [WORKLOAD ...]\nworkloads:", program);
  for (const Workload& workload : kWorkloads) std::fprintf(stderr, " %s", workload.name.data());
  std::fprintf(stderr, "\n");
  return 2;
}

int main(int argc, char** argv) {
  uint64_t repeats = 1;
  std::vector<Implementation> wanted;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    const auto* const workload =
        std::find_if(std::begin(kWorkloads), std::end(kWorkloads),
                     [&](const Workload& candidate) { return candidate.name == argument; });
    if (workload != std::end(kWorkloads)) {
      wanted.push_back(workload->run);
    } else if (argument == "--repeat" && i + 1 < argc) {
      repeats = std::strtoull(argv[++i], nullptr, 10);
    } else if (argument == "--round" && i + 1 < argc) {
      round_number = std::strtoull(argv[++i], nullptr, 10);
    } else {
      return usage(argv[0]);
    }
  }
  if (wanted.empty()) {
    for (const Workload& workload : kWorkloads) wanted.push_back(workload.run);
  }
  for (uint64_t i = 0; i < repeats; ++i, ++round_number) {
    for (const Implementation run : wanted) run();
  }
  for (const Figures& figures : all_figures) print(figures);
  return 0;
}

}  // namespace

void report(const Sample& sample) {
  const auto same = [&](const Figures& figures) {
    return figures.first.workload == sample.workload &&
           figures.first.implementation == sample.implementation;
  };
  auto found = std::find_if(all_figures.begin(), all_figures.end(), same);
  if (found == all_figures.end()) found = all_figures.insert(found, {sample, {}});
  found->seconds.push_back(sample.seconds);
}

void in_turns(std::initializer_list<Implementation> implementations) {
  std::vector<Implementation> order(implementations);
  if (round_number % 2 == 1) std::reverse(order.begin(), order.end());
  for (const Implementation run : order) run();
}

}  // namespace pgalloc::benchmarks

int main(int argc, char** argv) { return pgalloc::benchmarks::main(argc, argv); }
