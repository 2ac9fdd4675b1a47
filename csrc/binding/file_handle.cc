#include "binding/file_handle.h"

#include <pybind11/pybind11.h>

#include "binding/errors.h"
#include "binding/range_type.h"
#include "binding/self.h"

namespace pgalloc::binding {

namespace py = pybind11;

PagesHandle::~PagesHandle() {
  views_.clear();
  // The last owner closes the file and waits for the reclaimer, which may be in a punch.
  WithoutGil release;
  seat_.reset();
}

FileHandle::~FileHandle() {
  views_.clear();
  Py_XDECREF(name_);
  WithoutGil release;
  seat_.reset();
  file_.reset();
}

MemoryFile& FileHandle::core() const {
  MemoryFile* const file = owned();
  if (file == nullptr) {
    throw_if_error(Status::error(
        ErrorCode::kForked,
        "only the process that made this MemoryFile can do this, not a forked child"));
  }
  return *file;
}

bool FileHandle::closed() const {
  const PeerFile* const peer = latest_peer();
  return peer == nullptr ? file_->closed() : peer->closed();
}

Status FileHandle::close(bool keep_descriptor) {
  if (PeerFile* const share = peer()) {
    (void)share->close();
    return {};
  }
  Status status;
  if (owned() == nullptr) return status;
  {
    WithoutGil release;
    if (keep_descriptor) {
      file_->roll_back();
    } else {
      status = file_->close();
    }
  }
  // Every address is turned into a view without letting go of the GIL in between, and after the
  // close there are no more addresses; so with the GIL held no thread is half-way.
  views_.clear();
  file_->release_mapping();
  return status;
}

PyObject* WholeViews::view(const Pages& pages, FileRange range, bool readonly) {
  PyObject*& whole = readonly ? readonly_ : writable_;
  if (whole == nullptr) {
    whole = whole_view(pages.chunks(), readonly);
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

std::shared_ptr<FileSeat> seat_of(PyObject* object) {
  if (const PeerHandle* peer = peer_handle_of(object)) return peer->seat();
  const FileHandle* handle = handle_of(object);
  return handle == nullptr ? nullptr : handle->seat();
}

PyObject* set_file_error(const Status& status, const char* operation, PyObject* object) {
  const FileHandle* const handle =
      object != nullptr && is_bound<FileHandle>(object) ? constructed<FileHandle>(object) : nullptr;
  return set_error(status, operation, handle == nullptr ? nullptr : handle->name());
}

bool await_pages(PyObject* memory_file, const Pages& pages, FileRange range) {
  if (!pages.incomplete()) return true;
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
