// Purpose: what every workload of the core needs: a stopwatch, a place for its figures, and turns.
//
// Thread safety: externally synchronised; workloads run one after the other.
#pragma once

#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <string_view>

namespace pgalloc::benchmarks {

struct Sample {
  std::string_view workload;        // as in measures.md
  std::string_view implementation;  // "core", or what stands beside it
  uint64_t ops = 1;
  uint64_t bytes = 0;  // moved or looked at, where that says more than the time
  double seconds = 0;
};

// Keeps the figure; the driver prints the medians.
void report(const Sample& sample);

template <class Work>
double timed(Work work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// The compiler must believe that `value` is used.
template <class T>
void keep(const T& value) {
  asm volatile("" ::"r,m"(value) : "memory");
}

// Runs the implementations of one workload, every second round the other way round: memory that was
// used just before is warm, and the implementation that comes second finds it.
using Implementation = void (*)();
void in_turns(std::initializer_list<Implementation> implementations);

}  // namespace pgalloc::benchmarks
