// Purpose: waiting for another process: without the GIL, but so that Python's signal handlers run, and
// what they raise ends the wait.
#pragma once

#include <Python.h>

#include <chrono>
#include <optional>

#include "binding/without_gil.h"
#include "sharing/owner_link.h"

namespace pgalloc::binding {

// Whether a signal handler raises: an exception is set. To be asked after a wait without the GIL whose
// result the caller owns by then. The interpreter would ask by itself, but CPython before 3.13 can lose
// its note of a signal that comes while it takes the GIL, and runs the handler much later, outside of
// what the caller of the interrupted call guards.
inline bool a_handler_raises() { return PyErr_CheckSignals() != 0; }

// Calls call(patience) without the GIL. A Status kInterrupted in its result means that an exception is
// set.
template <class Call>
auto patiently(std::chrono::nanoseconds longest, Call call) {
  std::optional<WithoutGil> released;
  const OwnerLink::Patience patience{std::chrono::steady_clock::now() + longest, [&released] {
                                       released.reset();
                                       const bool goes_on = !a_handler_raises();
                                       released.emplace();
                                       return goes_on;
                                     }};
  released.emplace();
  auto result = call(patience);
  released.reset();
  return result;
}

}  // namespace pgalloc::binding
