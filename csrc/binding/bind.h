// Purpose: one register function per room; module.cc only lists them.
#pragma once

#include <pybind11/pybind11.h>

#include "base/status.h"
#include "binding/without_gil.h"

namespace pgalloc::binding {

void bind_memory_file(pybind11::module_& module);
void bind_ledger(pybind11::module_& module);
void bind_testing(pybind11::module_& module);
void bind_fork(pybind11::module_& module);
void bind_sharing(pybind11::module_& module);  // after bind_memory_file
void bind_broker(pybind11::module_& module);
void bind_discards(pybind11::module_& module);  // after bind_memory_file
void bind_cache(pybind11::module_& module);
void bind_guard(pybind11::module_& module);
void bind_image(pybind11::module_& module);
void bind_image_writer(pybind11::module_& module);
void bind_restore(pybind11::module_& module);  // after bind_memory_file

// The value, or the exception that stands for the failure.
template <class T>
T value_or_throw(Result<T> result);

// Calls wait(deadline) without the GIL, in slices short enough that Ctrl-C gets through, until it
// returns something true or `timeout_s` seconds (None: for ever) have passed. ForkedError in a child
// that a signal handler has forked meanwhile.
template <class Wait>
auto wait_interruptibly(const pybind11::object& timeout_s, Wait wait);

}  // namespace pgalloc::binding

#include "binding/bind_inl.h"
