// Purpose: the base of Allocation: a handle that owns one reference on every page of its range, and
// exports them as a buffer. A C-API type, because the buffer protocol is (before Python 3.12
// nothing else can export a buffer).
//
// Invariants
//   1. owned is true from construction until the reference was given back (or given away).
//   2. While exports > 0 the reference is kept, whatever release() said: a live view holds its
//   pages.
#include <pybind11/pybind11.h>
#include <structmember.h>

#include <new>

#include "binding/arguments.h"
#include "binding/errors.h"
#include "binding/file_handle.h"
#include "binding/range_type.h"

namespace pgalloc::binding {

namespace py = pybind11;

namespace {

struct AllocationObject {
  PyObject_HEAD PyObject* memory_file;  // nullptr once collected
  std::shared_ptr<MemoryFile> core;
  FileRange range;
  Py_ssize_t exports;
  std::shared_ptr<ChunkMap> mapping;  // while exports > 0
  bool owned;
  bool released;
  PyObject* weak_references;
};

PyTypeObject allocation_type = {PyVarObject_HEAD_INIT(nullptr, 0)};

AllocationObject* self_of(PyObject* self) { return reinterpret_cast<AllocationObject*>(self); }

void give_back(AllocationObject* self) {
  if (!self->owned) return;
  self->owned = false;
  const Status status = self->core->dec_ref(self->range);
  // A closed file has let go of everything; a forked child never owned it.
  if (status.ok() || status.code() == ErrorCode::kClosed || status.code() == ErrorCode::kForked) {
    return;
  }
  // Somebody dropped a reference that was not theirs. There is no caller to tell.
  const py::error_scope keep_pending_error;
  set_error(status);
  PyErr_WriteUnraisable(reinterpret_cast<PyObject*>(self));
}

bool check_owned(AllocationObject* self) {
  if (!self->released) return true;
  PyErr_SetString(error_type(ErrorCode::kClosed), "the Allocation has been released");
  return false;
}

PyObject* tp_new(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"file", "range", nullptr};
  PyObject* file = nullptr;
  PyObject* range_object = nullptr;
  FileRange range;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO", const_cast<char**>(names), &file,
                                   &range_object) ||
      !as_file_range(range_object, &range)) {
    return nullptr;
  }
  FileHandle* handle = handle_of(file);
  if (handle == nullptr) return nullptr;
  const Result<bool> used = handle->file()->has_unique_ref(range);
  if (!used.ok()) return set_error(used.status());

  auto* self = self_of(type->tp_alloc(type, 0));
  if (self == nullptr) return nullptr;
  new (&self->core) std::shared_ptr<MemoryFile>(handle->file());
  new (&self->mapping) std::shared_ptr<ChunkMap>;
  self->memory_file = Py_NewRef(file);
  self->range = range;
  self->owned = true;
  return reinterpret_cast<PyObject*>(self);
}

int tp_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(self_of(self)->memory_file);
  return 0;
}

int tp_clear(PyObject* self) {
  Py_CLEAR(self_of(self)->memory_file);
  return 0;
}

void tp_dealloc(PyObject* object) {
  AllocationObject* self = self_of(object);
  PyObject_GC_UnTrack(object);
  if (self->weak_references != nullptr) PyObject_ClearWeakRefs(object);
  give_back(self);
  tp_clear(object);
  {
    // This may be the file's last owner, and closing waits for the reclaimer.
    py::gil_scoped_release release;
    self->mapping.~shared_ptr();
    self->core.~shared_ptr();
  }
  Py_TYPE(object)->tp_free(object);
}

int get_buffer(PyObject* object, Py_buffer* buffer, int flags) {
  AllocationObject* self = self_of(object);
  buffer->obj = nullptr;
  if (!await_pages(self->memory_file, *self->core, self->range) || !check_owned(self)) return -1;
  const Result<char*> address = self->core->map(self->range);
  if (!address.ok()) {
    set_error(address.status());
    return -1;
  }
  if (PyBuffer_FillInfo(buffer, object, *address, static_cast<Py_ssize_t>(self->range.length()), 0,
                        flags) < 0) {
    return -1;
  }
  if (self->exports++ == 0) self->mapping = self->core->chunks();
  return 0;
}

void release_buffer(PyObject* object, Py_buffer*) {
  AllocationObject* self = self_of(object);
  if (--self->exports > 0) return;
  self->mapping.reset();
  if (self->released) give_back(self);
}

PyObject* release(PyObject* object, PyObject*) {
  AllocationObject* self = self_of(object);
  self->released = true;
  if (self->exports == 0) give_back(self);
  Py_RETURN_NONE;
}

PyObject* disown(PyObject* object, PyObject*) {
  AllocationObject* self = self_of(object);
  if (!check_owned(self)) return nullptr;
  if (self->exports > 0) {
    PyErr_SetString(PyExc_BufferError, "a view of the Allocation is alive");
    return nullptr;
  }
  self->released = true;
  self->owned = false;
  return new_file_range(self->range);
}

PyObject* view(PyObject* object, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  const bool has_keyword = names != nullptr && PyTuple_GET_SIZE(names) == 1;
  if (count != 0 || (names != nullptr && !has_keyword) ||
      (has_keyword &&
       PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "readonly") != 0)) {
    PyErr_SetString(PyExc_TypeError, "view() takes no argument but readonly=");
    return nullptr;
  }
  const int readonly = has_keyword ? PyObject_IsTrue(args[0]) : 0;
  if (readonly < 0) return nullptr;
  PyObject* whole = PyMemoryView_FromObject(object);
  if (whole == nullptr || readonly == 0) return whole;
  PyObject* result = PyObject_CallMethod(whole, "toreadonly", nullptr);
  Py_DECREF(whole);
  return result;
}

PyObject* get_range(PyObject* self, void*) { return new_file_range(self_of(self)->range); }
PyObject* get_nbytes(PyObject* self, void*) {
  return PyLong_FromUnsignedLongLong(self_of(self)->range.length());
}
PyObject* get_released(PyObject* self, void*) { return PyBool_FromLong(self_of(self)->released); }
PyObject* get_file(PyObject* self, void*) {
  PyObject* file = self_of(self)->memory_file;
  return Py_NewRef(file == nullptr ? Py_None : file);
}
PyObject* get_address(PyObject* object, void*) {
  AllocationObject* self = self_of(object);
  if (!await_pages(self->memory_file, *self->core, self->range) || !check_owned(self)) {
    return nullptr;
  }
  const Result<char*> address = self->core->map(self->range);
  return address.ok() ? PyLong_FromVoidPtr(*address) : set_error(address.status());
}

PyGetSetDef properties[] = {
    {"range", get_range, nullptr, "The pages, as a FileRange.", nullptr},
    {"nbytes", get_nbytes, nullptr, "Length in bytes.", nullptr},
    {"released", get_released, nullptr, "Whether release() was called.", nullptr},
    {"file", get_file, nullptr, "The MemoryFile the pages belong to.", nullptr},
    {"address", get_address, nullptr,
     "Where the pages are in this process's memory; it does not change while the file is open.",
     nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyMethodDef methods[] = {
    {"view", erased(view), METH_FASTCALL | METH_KEYWORDS,
     "view($self, *, readonly=False)\n--\n\n"
     "A memoryview of all bytes. It holds the pages by itself: they are neither reclaimed nor\n"
     "reused while it lives, even after release().\n\nRaises ClosedError after release()."},
    {"release", release, METH_NOARGS,
     "release($self, /)\n--\n\n"
     "Give the reference back, or, while views are alive, as soon as the last one is gone.\n"
     "Calling it again does nothing."},
    {"_disown", disown, METH_NOARGS,
     "_disown($self, /)\n--\n\nHand the reference to the caller and return the range."},
    {nullptr, nullptr, 0, nullptr}};

PyBufferProcs buffer_procs = {get_buffer, release_buffer};

}  // namespace

bool add_allocation_type(PyObject* module) {
  allocation_type.tp_name = "pgalloc._core.Allocation";
  allocation_type.tp_doc = "Allocation(file, range)\n--\n\nTakes over one reference on each page.";
  allocation_type.tp_basicsize = sizeof(AllocationObject);
  allocation_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC;
  allocation_type.tp_new = tp_new;
  allocation_type.tp_dealloc = tp_dealloc;
  allocation_type.tp_traverse = tp_traverse;
  allocation_type.tp_clear = tp_clear;
  allocation_type.tp_weaklistoffset = offsetof(AllocationObject, weak_references);
  allocation_type.tp_getset = properties;
  allocation_type.tp_methods = methods;
  allocation_type.tp_as_buffer = &buffer_procs;
  if (PyType_Ready(&allocation_type) < 0) return false;
  return PyModule_AddObjectRef(module, "Allocation",
                               reinterpret_cast<PyObject*>(&allocation_type)) == 0;
}

}  // namespace pgalloc::binding
