// Purpose: the templates that bind.h declares.
#pragma once

#include <algorithm>
#include <chrono>
#include <optional>

#include "base/process_generation.h"
#include "binding/bind.h"
#include "binding/errors.h"
#include "file/orphaned_pages.h"

namespace pgalloc::binding {

template <class T>
T value_or_throw(Result<T> result) {
  if (!result.ok()) throw_if_error(result.status());
  return std::move(*result);
}

template <class Wait>
auto wait_interruptibly(const pybind11::object& timeout_s, Wait wait) {
  using Clock = std::chrono::steady_clock;
  constexpr auto kSlice = std::chrono::milliseconds(50);
  constexpr double kLongest = 1e9;  // seconds; about 30 years, and far from overflow
  const uint32_t generation = process_generation();
  std::optional<Clock::time_point> deadline;
  if (!timeout_s.is_none()) {
    const double seconds = timeout_s.cast<double>();
    if (seconds != seconds) throw pybind11::value_error("timeout must not be NaN");
    deadline =
        Clock::now() + std::chrono::duration_cast<Clock::duration>(
                           std::chrono::duration<double>(std::clamp(seconds, 0.0, kLongest)));
  }
  while (true) {
    // What is waited for is the parent's, with threads that are not here.
    if (generation != process_generation()) throw_if_error(OrphanedPages::refuse());
    Clock::time_point slice_end = Clock::now() + kSlice;
    const bool last = deadline && *deadline <= slice_end;
    if (last) slice_end = *deadline;
    auto result = [&] {
      WithoutGil release;
      return wait(slice_end);
    }();
    if (result || last) return result;
    if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
  }
}

}  // namespace pgalloc::binding
