#include "binding/file_handle.h"

#include <pybind11/pybind11.h>

#include "binding/errors.h"
#include "binding/range_type.h"
#include "binding/self.h"

namespace pgalloc::binding {

namespace py = pybind11;

FileHandle::~FileHandle() {
  Py_XDECREF(writable_);
  Py_XDECREF(readonly_);
  // The last owner closes the file and waits for the reclaimer, which may be in a punch.
  WithoutGil release;
  file_.reset();
}

Status FileHandle::close(bool keep_descriptor) {
  Status status;
  {
    WithoutGil release;
    if (keep_descriptor) {
      file_->abandon();
    } else {
      status = file_->close();
    }
  }
  if (file_->forked()) return status;
  // Every address is turned into a view without letting go of the GIL in between, and after the
  // close there are no more addresses; so with the GIL held nobody is half-way.
  Py_CLEAR(writable_);
  Py_CLEAR(readonly_);
  file_->release_mapping();
  return status;
}

PyObject* FileHandle::view(FileRange range, bool readonly) {
  PyObject*& whole = readonly ? readonly_ : writable_;
  if (whole == nullptr) {
    whole = whole_view(file_->chunks(), readonly);
    if (whole == nullptr) return nullptr;
  }
  return PySequence_GetSlice(whole, static_cast<Py_ssize_t>(range.start),
                             static_cast<Py_ssize_t>(range.end));
}

FileHandle* handle_of(PyObject* memory_file) {
  static PyTypeObject* const type =
      reinterpret_cast<PyTypeObject*>(py::type::of<FileHandle>().ptr());
  if (!PyObject_TypeCheck(memory_file, type)) {
    PyErr_Format(PyExc_TypeError, "expected a MemoryFile, not %.100s",
                 Py_TYPE(memory_file)->tp_name);
    return nullptr;
  }
  FileHandle* handle = constructed<FileHandle>(memory_file);
  if (handle == nullptr) {
    PyErr_SetString(PyExc_RuntimeError, "MemoryFile.__init__ has not run");
  }
  return handle;
}

bool await_pages(PyObject* memory_file, const MemoryFile& file, FileRange range) {
  if (!file.incomplete()) return true;
  if (memory_file == nullptr) {
    PyErr_SetString(error_type(ErrorCode::kClosed), "the MemoryFile is being collected");
    return false;
  }
  PyObject* range_object = new_file_range(range);
  if (range_object == nullptr) return false;
  // In Python, because encoded pages are decoded there.
  PyObject* done = PyObject_CallMethod(memory_file, "_await_pages", "O", range_object);
  Py_DECREF(range_object);
  Py_XDECREF(done);
  return done != nullptr;
}

}  // namespace pgalloc::binding
