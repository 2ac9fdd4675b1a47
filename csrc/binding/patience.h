// Purpose: waiting for another process: without the GIL, but so that Python's signal handlers run, and
// what they raise ends the wait.
#pragma once

#include <Python.h>

#include <chrono>
#include <optional>

#include "binding/without_gil.h"
#include "sharing/owner_link.h"

namespace pgalloc::binding {

// Calls call(patience) without the GIL. A Status kInterrupted in its result means that an exception is
// set.
template <class Call>
auto patiently(std::chrono::nanoseconds longest, Call call) {
  std::optional<WithoutGil> released;
  const OwnerLink::Patience patience{std::chrono::steady_clock::now() + longest, [&released] {
                                       released.reset();
                                       const bool goes_on = PyErr_CheckSignals() == 0;
                                       released.emplace();
                                       return goes_on;
                                     }};
  released.emplace();
  auto result = call(patience);
  released.reset();
  return result;
}

}  // namespace pgalloc::binding
