// Purpose: the base of Allocation: a handle that owns one reference on every page of its range, and
// exports them as a buffer. A C-API type, because the buffer protocol is (before Python 3.12
// nothing else can export a buffer).
//
// The invariants stand in allocation_object.h.
#include <Python.h>
#include <errno.h>
#include <structmember.h>

#include <cstring>
#include <new>
#include <utility>

#include "binding/allocation_object.h"
#include "binding/arguments.h"
#include "binding/errors.h"
#include "binding/file_handle.h"
#include "binding/guarded.h"
#include "binding/range_type.h"

namespace pgalloc::binding {

namespace {

PyTypeObject allocation_type = {PyVarObject_HEAD_INIT(nullptr, 0)};
// The Python class; lives as long as the process.
PyTypeObject* allocation_class = &allocation_type;

PyObject* make(PyTypeObject* type, PyObject* memory_file, std::shared_ptr<FileSeat> seat,
               FileRange range) {
  auto* self = self_of(type->tp_alloc(type, 0));
  if (self == nullptr) return nullptr;
  new (&self->seat) std::shared_ptr<FileSeat>(std::move(seat));
  new (&self->mapping) std::shared_ptr<ChunkMap>;
  new (&self->entry) Discardable;
  self->memory_file = Py_NewRef(memory_file);
  self->range = self->entry.range = range;
  self->owned = true;
  self->generation = process_generation();
  return reinterpret_cast<PyObject*>(self);
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
  std::shared_ptr<FileSeat> seat = seat_of(file);
  if (seat == nullptr) return nullptr;
  const Result<bool> used = seat->pages().has_unique_ref(range);
  if (!used.ok()) return set_error(used.status());
  return make(type, file, std::move(seat), range);
}

// As tp_new, with a reference that a restored image recorded: no signal handler runs between taking it
// over and the object that owns it.
PyObject* adopt(PyObject* type, PyObject* const* args, Py_ssize_t count) {
  FileRange range;
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "_adopt() takes a file and a range");
    return nullptr;
  }
  const FileHandle* handle = handle_of(args[0]);
  if (handle == nullptr || !as_file_range(args[1], &range)) return nullptr;
  MemoryFile& file = handle->core();
  const Status status = file.references().adopt(range);
  if (!status.ok()) return set_error(status);
  PyObject* const adopted =
      make(reinterpret_cast<PyTypeObject*>(type), args[0], handle->seat(), range);
  if (adopted == nullptr) (void)file.dec_ref(range);
  return adopted;
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
    WithoutGil release;
    self->mapping.~shared_ptr();
    self->seat.~shared_ptr();
  }
  Py_TYPE(object)->tp_free(object);
}

// --- Buffers, which pin --------------------------------------------------------------------------

int get_buffer(PyObject* object, Py_buffer* buffer, int flags) {
  AllocationObject* self = self_of(object);
  buffer->obj = nullptr;
  char* const address = add_export(self);
  if (address == nullptr) return -1;
  if (PyBuffer_FillInfo(buffer, object, address, static_cast<Py_ssize_t>(self->range.length()),
                        pages_of(self).readonly() ? 1 : 0, flags) == 0) {
    return 0;
  }
  drop_export(self);
  return -1;
}

void release_buffer(PyObject* object, Py_buffer*) { drop_export(self_of(object)); }

PyObject* release(PyObject* object, PyObject*) {
  AllocationObject* self = self_of(object);
  self->released = true;
  if (self->exports == 0) {
    give_back(self);
  } else if (self->owned) {
    pages_of(self).forget(self->entry);  // the queue's owner has no use of it any more
  }
  Py_RETURN_NONE;
}

PyObject* write(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  uint64_t offset = 0;
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "_write() takes an offset and a buffer");
    return nullptr;
  }
  Py_buffer data;
  if (!as_u64(args[0], "offset", &offset) ||
      PyObject_GetBuffer(args[1], &data, PyBUF_SIMPLE) != 0) {
    return nullptr;
  }
  const bool written = write_into(self_of(object), offset, data);
  PyBuffer_Release(&data);
  if (!written) return nullptr;
  Py_RETURN_NONE;
}

// A handle of its own on [start, stop), in one step: no signal handler runs between the reference and
// the object that owns it.
PyObject* share(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  AllocationObject* self = self_of(object);
  uint64_t start = 0;
  uint64_t stop = 0;
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "_share() takes start and stop");
    return nullptr;
  }
  if (!as_u64(args[0], "start", &start) || !as_u64(args[1], "stop", &stop)) return nullptr;
  if (start >= stop || stop > self->range.length()) {
    PyErr_Format(error_type(ErrorCode::kRange), "[%llu, %llu) is not a part of %llu bytes",
                 static_cast<unsigned long long>(start), static_cast<unsigned long long>(stop),
                 static_cast<unsigned long long>(self->range.length()));
    return nullptr;
  }
  if (!check_owned(self)) return nullptr;
  const FileRange part{self->range.start + start, self->range.start + stop};
  const Status status = add_reference(self, part);
  if (!status.ok()) return set_error(status);
  PyObject* const handle = new_allocation(self->memory_file, self->seat, part);
  if (handle == nullptr) {
    (void)pages_of(self).dec_ref(part);
  }
  return handle;
}

PyObject* get_pinned(PyObject* object, void*) {
  const AllocationObject* self = self_of(object);
  return PyBool_FromLong(!self->unpinned || self->exports > 0);
}
PyObject* get_in_use(PyObject* object, void*) {
  return PyBool_FromLong(self_of(object)->exports > 0);
}

PyObject* disown(PyObject* object, PyObject*) {
  AllocationObject* self = self_of(object);
  if (!check_owned(self)) return nullptr;
  if (self->exports > 0) {
    PyErr_SetString(PyExc_BufferError, "a view of the Allocation is alive");
    return nullptr;
  }
  pages_of(self).forget(self->entry);
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
  if (!await_pages(self->memory_file, pages_of(self), self->range) || !check_owned(self)) {
    return nullptr;
  }
  const Result<char*> address = pages_of(self).map(self->range);
  return address.ok() ? PyLong_FromVoidPtr(*address)
                      : set_file_error(address.status(), "address", self->memory_file);
}

PyGetSetDef properties[] = {
    {"range", get_range, nullptr, "The pages, as a FileRange.", nullptr},
    {"nbytes", get_nbytes, nullptr, "Length in bytes.", nullptr},
    {"released", get_released, nullptr, "Whether release() was called.", nullptr},
    {"file", get_file, nullptr, "The MemoryFile the pages belong to.", nullptr},
    {"address", guarded<get_address>, nullptr,
     "Where the pages are in this process's memory; it does not change while the file is open.",
     nullptr},
    {"pinned", get_pinned, nullptr,
     "False while the contents may be discarded: after unpin(), as long as no view is alive.",
     nullptr},
    {"_in_use", get_in_use, nullptr, "Whether a view is alive.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyMethodDef methods[] = {
    {"view", erased(guarded<view>), METH_FASTCALL | METH_KEYWORDS,
     "view($self, *, readonly=False)\n--\n\n"
     "A memoryview of all bytes. It holds the pages by itself: they are neither reclaimed nor\n"
     "reused while it lives, even after release().\n\nRaises ClosedError after release()."},
    {"release", guarded<release>, METH_NOARGS,
     "release($self, /)\n--\n\n"
     "Give the reference back, or, while views are alive, as soon as the last one is gone.\n"
     "Calling it again does nothing."},
    {"unpin", guarded<allocation_unpin>, METH_NOARGS,
     "unpin($self, /)\n--\n\n"
     "Allow the contents to be discarded when memory runs short, the one unpinned longest ago\n"
     "first. The range and the reference stay; discarded pages read as zero. While a view is "
     "alive\n"
     "the contents stay, and pages go only if no other handle has them pinned.\n\n"
     "Raises ClosedError after release(), ForkedError in a forked child."},
    {"pin", guarded<allocation_pin>, METH_NOARGS,
     "pin($self, /)\n--\n\n"
     "Keep the contents from here on. False if they were discarded since unpin(), in part at\n"
     "least; True if they are what they were.\n\n"
     "Raises ClosedError after release(), ForkedError in a forked child."},
    {"_write", erased(guarded<write>), METH_FASTCALL,
     "_write($self, offset, data, /)\n--\n\nCopy a buffer into the pages."},
    {"_share", erased(guarded<share>), METH_FASTCALL,
     "_share($self, start, stop, /)\n--\n\nA handle of its own on a part."},
    {"_adopt", erased(guarded<adopt>), METH_FASTCALL | METH_CLASS,
     "_adopt($type, file, range, /)\n--\n\nTake over a reference that a restored image recorded."},
    {"_disown", guarded<disown>, METH_NOARGS,
     "_disown($self, /)\n--\n\nHand the reference to the caller and return the range."},
    {nullptr, nullptr, 0, nullptr}};

PyBufferProcs buffer_procs = {guarded<get_buffer>, release_buffer};

PyObject* set_allocation_class(PyObject*, PyObject* type) {
  if (!PyType_Check(type) ||
      !PyType_IsSubtype(reinterpret_cast<PyTypeObject*>(type), &allocation_type)) {
    PyErr_SetString(PyExc_TypeError, "expected a subclass of _core.Allocation");
    return nullptr;
  }
  allocation_class = reinterpret_cast<PyTypeObject*>(Py_NewRef(type));
  Py_RETURN_NONE;
}

PyMethodDef module_functions[] = {
    {"set_allocation_class", set_allocation_class, METH_O,
     "set_allocation_class(type, /)\n--\n\nThe class of what MemoryFile.allocate() returns."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

bool write_into(AllocationObject* self, uint64_t offset, const Py_buffer& data) {
  // From here on the kernel copies, without the GIL and without page faults.
  constexpr uint64_t kByKernel = 16384;
  const auto size = static_cast<uint64_t>(data.len);
  const uint64_t length = self->range.length();
  if (offset > length || size > length - offset) {
    set_error(Status::error(ErrorCode::kRange, "more than the Allocation holds"));
    return false;
  }
  if (pages_of(self).readonly()) {
    set_error(Status::system_error(EACCES, "write"));
    return false;
  }
  char* const address = add_export(self);
  if (address == nullptr) return false;
  Status status;
  if (size < kByKernel) {
    std::memcpy(address + offset, data.buf, size);
  } else {
    WithoutGil release;
    status =
        pages_of(self).write(self->range.start + offset, static_cast<const char*>(data.buf), size);
  }
  drop_export(self);
  if (!status.ok()) set_file_error(status, "write", self->memory_file);
  // What is told when the last export goes may have failed.
  return PyErr_Occurred() == nullptr;
}

PyObject* new_allocation(PyObject* memory_file, std::shared_ptr<FileSeat> seat, FileRange range) {
  return make(allocation_class, memory_file, std::move(seat), range);
}

bool add_allocation_type(PyObject* module) {
  allocation_type.tp_name = "pgalloc._core.Allocation";
  allocation_type.tp_doc = "Allocation(file, range)\n--\n\nTakes over one reference on each page.";
  allocation_type.tp_basicsize = sizeof(AllocationObject);
  allocation_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC;
  allocation_type.tp_new = guarded<tp_new>;
  allocation_type.tp_dealloc = tp_dealloc;
  allocation_type.tp_traverse = tp_traverse;
  allocation_type.tp_clear = tp_clear;
  allocation_type.tp_weaklistoffset = offsetof(AllocationObject, weak_references);
  allocation_type.tp_getset = properties;
  allocation_type.tp_methods = methods;
  allocation_type.tp_as_buffer = &buffer_procs;
  if (PyType_Ready(&allocation_type) < 0 || PyModule_AddFunctions(module, module_functions) < 0) {
    return false;
  }
  return PyModule_AddObjectRef(module, "Allocation",
                               reinterpret_cast<PyObject*>(&allocation_type)) == 0;
}

}  // namespace pgalloc::binding
