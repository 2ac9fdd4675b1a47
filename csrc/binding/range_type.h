// Purpose: FileRange and EvictableRange, the two range types of the API. They are the same but in
// name, so that a number in a user's own space is not mistaken for a file offset. Plain C-API
// types, because every hot call takes or returns one.
//
// Invariant: start <= end; a malformed range cannot be made.
#pragma once

#include <Python.h>

#include "base/units.h"

namespace pgalloc::binding {

bool add_range_types(PyObject* module);

bool is_file_range(PyObject* object);
bool is_evictable_range(PyObject* object);
// REQUIRES: is_file_range(object) or is_evictable_range(object).
FileRange range_of(PyObject* object);
PyObject* new_file_range(FileRange range);
PyObject* new_evictable_range(FileRange range);

}  // namespace pgalloc::binding
