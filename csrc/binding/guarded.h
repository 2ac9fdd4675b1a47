// Purpose: functions that the interpreter calls: no C++ exception may leave them.
#pragma once

#include <Python.h>
#include <pybind11/pybind11.h>

#include <exception>
#include <new>
#include <type_traits>

namespace pgalloc::binding {

// Calls function(), which reports errors as the C-API does: by nullptr, or -1. What it throws is
// reported so, too. (What unwinds a thread of an interpreter that ends is no std::exception, and goes
// on.)
template <class Function>
auto guard(Function function) -> decltype(function()) {
  using Value = decltype(function());
  try {
    return function();
  } catch (pybind11::error_already_set& error) {
    error.restore();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    if (PyErr_Occurred() == nullptr) PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  if constexpr (std::is_pointer_v<Value>) {
    return nullptr;
  } else {
    return static_cast<Value>(-1);
  }
}

template <auto function>
struct Guarded;

template <class Value, class... Arguments, Value (*function)(Arguments...)>
struct Guarded<function> {
  static Value call(Arguments... arguments) {
    return guard([&] { return function(arguments...); });
  }
};

// The same function, for a table of the interpreter's.
template <auto function>
inline constexpr auto guarded = &Guarded<function>::call;

}  // namespace pgalloc::binding
