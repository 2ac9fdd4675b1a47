// Purpose: from a core Status to the typed Python exception. The classes are defined in
// pgalloc/errors.py; this room looks them up once.
#pragma once

#include <Python.h>

#include "base/status.h"

namespace pgalloc::binding {

// Imports the classes. False with an exception set.
bool load_error_types();
PyObject* error_type(ErrorCode code);  // borrowed

// Sets the exception that stands for `status`; returns nullptr for the caller to pass on.
// REQUIRES: !status.ok().
PyObject* set_error(const Status& status);
// The same, of an operation of pgalloc's on a file: an OSError's text begins with `operation`, and its
// filename is `name`, unless that is nullptr.
PyObject* set_error(const Status& status, const char* operation, PyObject* name);
// The same for functions bound by pybind11: throws unless `status` is ok.
void throw_if_error(const Status& status);
void throw_if_error(const Status& status, const char* operation, PyObject* name);

}  // namespace pgalloc::binding
