#include "binding/errors.h"

#include <pybind11/pybind11.h>

#include <array>
#include <string>

namespace pgalloc::binding {

namespace py = pybind11;

namespace {

struct NamedError {
  ErrorCode code;
  const char* name;
};

// In the order of ErrorCode, so that the code is the index.
constexpr std::array kErrors = {
    NamedError{ErrorCode::kRange, "RangeError"},
    NamedError{ErrorCode::kOption, "OptionError"},
    NamedError{ErrorCode::kRefCount, "RefCountError"},
    NamedError{ErrorCode::kOutOfMemory, "OutOfMemoryError"},
    NamedError{ErrorCode::kAccount, "AccountError"},
    NamedError{ErrorCode::kClosed, "ClosedError"},
    NamedError{ErrorCode::kForked, "ForkedError"},
    NamedError{ErrorCode::kSnapshot, "SnapshotError"},
    NamedError{ErrorCode::kSnapshotCorrupt, "SnapshotCorruptError"},
    NamedError{ErrorCode::kSnapshotVersion, "SnapshotVersionError"},
    NamedError{ErrorCode::kOwnerGone, "OwnerGoneError"},
    NamedError{ErrorCode::kSharing, "SharingError"},
};

std::array<PyObject*, kErrors.size()> types{};

}  // namespace

bool load_error_types() {
  PyObject* module = PyImport_ImportModule("pgalloc.errors");
  if (module == nullptr) return false;
  for (const NamedError& error : kErrors) {
    PyObject* type = PyObject_GetAttrString(module, error.name);
    if (type == nullptr) return false;
    types[static_cast<size_t>(error.code)] = type;  // kept for the life of the process
  }
  Py_DECREF(module);
  return true;
}

PyObject* error_type(ErrorCode code) {
  if (code == ErrorCode::kSystem) return PyExc_OSError;
  if (code == ErrorCode::kTimedOut) code = ErrorCode::kSharing;
  if (code == ErrorCode::kPermission) return PyExc_PermissionError;
  if (code == ErrorCode::kNoMemory) return PyExc_MemoryError;
  return types[static_cast<size_t>(code)];
}

PyObject* set_error(const Status& status) { return set_error(status, nullptr, nullptr); }

PyObject* set_error(const Status& status, const char* operation, PyObject* name) {
  if (status.code() == ErrorCode::kInterrupted) return nullptr;  // what interrupted is set already
  if (status.code() != ErrorCode::kSystem) {
    PyErr_SetString(error_type(status.code()), status.message().c_str());
    return nullptr;
  }
  std::string text = status.describe();
  if (operation != nullptr) text = std::string(operation) + ": " + text;
  // OSError picks its subclass (PermissionError, ...) by errno when called with two arguments or more.
  PyObject* error =
      name == nullptr
          ? PyObject_CallFunction(PyExc_OSError, "is", status.error_number(), text.c_str())
          : PyObject_CallFunction(PyExc_OSError, "isO", status.error_number(), text.c_str(), name);
  if (error == nullptr) return nullptr;
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error)), error);
  Py_DECREF(error);
  return nullptr;
}

void throw_if_error(const Status& status) { throw_if_error(status, nullptr, nullptr); }

void throw_if_error(const Status& status, const char* operation, PyObject* name) {
  if (status.ok()) return;
  set_error(status, operation, name);
  throw py::error_already_set();
}

}  // namespace pgalloc::binding
