// Purpose: turning Python arguments into core values, strictly: a bool is not a number here, a
// float is not a length, and what does not fit 64 bits is a RangeError. Nothing is converted
// silently.
//
// Thread safety: all of the binding runs with the GIL held unless it says otherwise.
//
// Conventions of this room: C-API functions return nullptr/false/-1 with a Python exception set;
// functions bound by pybind11 throw py::error_already_set.
#pragma once

#include <Python.h>

#include <cstdint>

#include "base/units.h"
#include "file/memory_file.h"

namespace pgalloc::binding {

// A method with a calling convention of its own, as a method table wants it.
template <class Function>
constexpr PyCFunction erased(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

// Each fills *out, or sets TypeError / RangeError / OptionError naming the argument.
bool as_u64(PyObject* object, const char* name, uint64_t* out);
bool as_u32(PyObject* object, const char* name, uint32_t* out);
bool as_file_range(PyObject* object, FileRange* out);
bool as_kind(PyObject* object, MemoryKind* out);  // any kind a page of a file can have
bool as_direction(PyObject* object, Direction* out);
// A bool, or None for HugeWish::kIfUseful.
bool as_huge(PyObject* object, HugeWish* out);
bool as_mode(PyObject* object, AllocationMode* out);

}  // namespace pgalloc::binding
