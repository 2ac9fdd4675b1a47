// Purpose: what pybind11's own types lack, so that no Python program aborts the interpreter.
//
// pybind11 throws where only the interpreter is above it: in tp_new, without memory or for a type that
// it does not know. It writes into objects that there was no memory for. And its types are of one
// layout, so that Python lets an object change its class to one of another C++ type.
//
// Invariants, after harden_bound_types()
//   1. Calling any type of the module gives an object or an exception.
//   2. No two types have the same layout: an object of one never becomes one of another.
//   3. Nothing is pickled that does not say how.
//   4. A function for whose answer there is no memory raises MemoryError.
#pragma once

#include <pybind11/pybind11.h>

namespace pgalloc::binding {

// For all types that are in the module, or in a module in it. To be called once all are. False with an
// exception set.
bool harden_bound_types(PyObject* module);

// Has pybind11 report as MemoryError what it throws as a RuntimeError when an object of Python's
// cannot be allocated.
void translate_memory_errors();

}  // namespace pgalloc::binding
