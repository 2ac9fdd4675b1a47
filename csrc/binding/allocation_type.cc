// Purpose: the base of Allocation: a handle that owns one reference on every page of its range, and
// exports them as a buffer. A C-API type, because the buffer protocol is (before Python 3.12
// nothing else can export a buffer).
//
// Invariants
//   1. owned is true from construction until the reference was given back (or given away).
//   2. While exports > 0 the reference is kept, whatever release() said: a live view holds its
//      pages.
//   3. The core counts the handle as unpinned iff unpin() was called last, not pin(), and exports
//      is 0: a live view pins. (But not in a forked child, and not once the file is closed.)
//   4. A child does not inherit what nobody had pinned when it was forked: such a handle owns nothing
//      there.
//   5. In a peer, unpinned says that the owner of the pages counts them as unpinned. A view takes that
//      back for good: when it goes, nobody may be there to ask.
#include <pybind11/pybind11.h>
#include <structmember.h>

#include <errno.h>

#include <cstring>
#include <new>
#include <utility>

#include "binding/arguments.h"
#include "binding/errors.h"
#include "binding/file_handle.h"
#include "binding/range_type.h"

namespace pgalloc::binding {

namespace py = pybind11;

namespace {

struct AllocationObject {
  PyObject_HEAD PyObject* memory_file;  // nullptr once collected
  std::shared_ptr<Pages> core;
  FileRange range;
  Py_ssize_t exports;
  Py_ssize_t pinning;                 // threads that are in core->pin() without the GIL
  std::shared_ptr<ChunkMap> mapping;  // while exports > 0
  Discardable entry;
  std::shared_ptr<DiscardQueue> queue;  // that the entry waits in, if not the file's own
  bool owned;
  bool released;
  bool unpinned;  // as far as its user is concerned
  uint32_t generation;  // of the process that made it, or unpinned it last
  PyObject* weak_references;
};

PyTypeObject allocation_type = {PyVarObject_HEAD_INIT(nullptr, 0)};

AllocationObject* self_of(PyObject* self) { return reinterpret_cast<AllocationObject*>(self); }

void give_back(AllocationObject* self) {
  if (!self->owned) return;
  self->owned = false;
  self->core->forget(self->entry);
  if (self->unpinned && self->generation != process_generation()) return;  // invariant 4
  const Status status = self->core->dec_ref(self->range);
  // A closed file has let go of everything; a forked child never owned it.
  if (status.ok() || status.code() == ErrorCode::kClosed || status.code() == ErrorCode::kForked ||
      status.code() == ErrorCode::kOwnerGone) {
    return;
  }
  // Somebody dropped a reference that was not theirs. There is no caller to tell.
  const py::error_scope keep_pending_error;
  set_error(status);
  // Not self: it may be on its way out, and must not be shown to anybody.
  PyErr_WriteUnraisable(reinterpret_cast<PyObject*>(Py_TYPE(self)));
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
  std::shared_ptr<Pages> pages = pages_of(file);
  if (pages == nullptr) return nullptr;
  const Result<bool> used = pages->has_unique_ref(range);
  if (!used.ok()) return set_error(used.status());

  auto* self = self_of(type->tp_alloc(type, 0));
  if (self == nullptr) return nullptr;
  new (&self->core) std::shared_ptr<Pages>(std::move(pages));
  new (&self->mapping) std::shared_ptr<ChunkMap>;
  new (&self->entry) Discardable;
  new (&self->queue) std::shared_ptr<DiscardQueue>;
  self->memory_file = Py_NewRef(file);
  self->range = self->entry.range = range;
  self->owned = true;
  self->generation = process_generation();
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
    WithoutGil release;
    self->mapping.~shared_ptr();
    self->queue.~shared_ptr();
    self->core.~shared_ptr();
  }
  Py_TYPE(object)->tp_free(object);
}

// --- Buffers, which pin --------------------------------------------------------------------------

// Waits for a discard under way, without the GIL where that may take time.
void pin_in_core(AllocationObject* self, bool in_place) {
  if (!self->core->discarding()) {
    self->core->pin(self->entry, in_place);
    return;
  }
  ++self->pinning;
  {
    WithoutGil release;
    self->core->pin(self->entry, in_place);
  }
  --self->pinning;
}

// Asks the owner of the pages, which only Python can: the answer to `method`, or -1 with an exception.
int ask_owner(AllocationObject* self, const char* method) {
  if (self->memory_file == nullptr) {
    PyErr_SetString(error_type(ErrorCode::kClosed), "the file is being collected");
    return -1;
  }
  PyObject* range = new_file_range(self->range);
  if (range == nullptr) return -1;
  PyObject* answer = PyObject_CallMethod(self->memory_file, method, "O", range);
  Py_DECREF(range);
  const int truth = answer == nullptr ? -1 : PyObject_IsTrue(answer);
  Py_XDECREF(answer);
  return truth;
}

bool pin_elsewhere(AllocationObject* self) {
  const int intact = ask_owner(self, "_pin_at_owner");
  if (intact < 0) return false;
  self->unpinned = false;
  self->entry.lost = intact == 0;
  return true;
}

void drop_export(AllocationObject* self) {
  if (--self->exports > 0) return;
  self->mapping.reset();
  if (self->released) {
    give_back(self);
  } else if (self->unpinned && !self->core->discards_elsewhere()) {
    (void)self->core->unpin(self->entry);  // fails where it does not matter: closed, or forked
  }
}

// One more export: the address of the contents, which are pinned from here to drop_export().
char* add_export(AllocationObject* self) {
  if (!await_pages(self->memory_file, *self->core, self->range) || !check_owned(self)) {
    return nullptr;
  }
  if (self->unpinned && self->core->discards_elsewhere() && !pin_elsewhere(self)) return nullptr;
  ++self->exports;
  // While another thread pins, only the core's lock says what became of the contents.
  if (self->pinning > 0 || self->entry.unpinned) pin_in_core(self, /*in_place=*/true);
  if (check_owned(self)) {
    const Result<char*> address = self->core->map(self->range);
    if (address.ok()) {
      if (self->mapping == nullptr) self->mapping = self->core->chunks();
      return *address;
    }
    set_error(address.status());
  }
  const py::error_scope keep_error;
  drop_export(self);
  return nullptr;
}

int get_buffer(PyObject* object, Py_buffer* buffer, int flags) {
  AllocationObject* self = self_of(object);
  buffer->obj = nullptr;
  char* const address = add_export(self);
  if (address == nullptr) return -1;
  if (PyBuffer_FillInfo(buffer, object, address, static_cast<Py_ssize_t>(self->range.length()),
                        self->core->readonly() ? 1 : 0, flags) == 0) {
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
    self->core->forget(self->entry);  // the queue's owner has no use of it any more
  }
  Py_RETURN_NONE;
}

// --- Pinning -------------------------------------------------------------------------------------

bool check_usable(AllocationObject* self) {
  if (!check_owned(self)) return false;
  const Status status = self->core->check_usable();
  if (!status.ok()) set_error(status);
  return status.ok();
}

bool unpin_in(AllocationObject* self, std::shared_ptr<DiscardQueue> queue, uint64_t id,
              uint64_t hash) {
  if (!check_usable(self)) return false;
  if (self->unpinned) return true;
  self->queue = std::move(queue);
  self->entry.queue = self->queue.get();
  self->entry.id = id;
  self->entry.hash = hash;
  self->entry.lost = false;
  if (self->exports == 0) {
    const Status status = self->core->unpin(self->entry);
    if (!status.ok()) {
      set_error(status);
      return false;
    }
  }
  self->unpinned = true;
  return true;
}

// While a view is alive, or another handle of this process is on the pages, they stay pinned: true,
// as far as anybody can tell.
bool unpin_elsewhere(AllocationObject* self) {
  if (!check_usable(self)) return false;
  if (self->unpinned || self->exports > 0) return true;
  const int unpinned = ask_owner(self, "_unpin_at_owner");
  if (unpinned < 0) return false;
  self->unpinned = unpinned > 0;
  self->generation = process_generation();
  self->entry.lost = false;
  return true;
}

PyObject* unpin(PyObject* object, PyObject*) {
  AllocationObject* self = self_of(object);
  const bool done = self->core->discards_elsewhere() ? unpin_elsewhere(self)
                                                     : unpin_in(self, nullptr, 0, 0);
  if (!done) return nullptr;
  Py_RETURN_NONE;
}

// For caches, whose queues know what they hold by a number.
PyObject* let_go(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  if (count != 3) {
    PyErr_SetString(PyExc_TypeError, "_let_go() takes a queue, an id and a hash");
    return nullptr;
  }
  auto queue = queue_of(args[0]);
  const uint64_t id = queue == nullptr ? 0 : PyLong_AsUnsignedLongLongMask(args[1]);
  const uint64_t hash = queue == nullptr ? 0 : PyLong_AsUnsignedLongLongMask(args[2]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  if (!unpin_in(self_of(object), std::move(queue), id, hash)) return nullptr;
  Py_RETURN_NONE;
}

// What is not let go of yet is looked at all the same.
PyObject* count_hits_in(PyObject* object, PyObject* queue_object) {
  AllocationObject* self = self_of(object);
  auto queue = queue_of(queue_object);
  if (queue == nullptr || !check_usable(self)) return nullptr;
  if (!self->unpinned && self->entry.list == nullptr) self->queue = std::move(queue);
  Py_RETURN_NONE;
}

PyObject* pin(PyObject* object, PyObject*) {
  AllocationObject* self = self_of(object);
  if (!check_usable(self)) return nullptr;
  if (self->core->discards_elsewhere()) {
    if (self->unpinned && !pin_elsewhere(self)) return nullptr;
    return PyBool_FromLong(!std::exchange(self->entry.lost, false));
  }
  if (!self->unpinned) Py_RETURN_TRUE;
  self->unpinned = false;
  pin_in_core(self, /*in_place=*/false);
  return PyBool_FromLong(!self->entry.lost);
}

// A read-only view of [start, stop) that pins, or None if the contents were discarded.
PyObject* peek(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  AllocationObject* self = self_of(object);
  uint64_t start = 0;
  uint64_t stop = 0;
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "_peek() takes start and stop");
    return nullptr;
  }
  if (!as_u64(args[0], "start", &start) || !as_u64(args[1], "stop", &stop)) return nullptr;
  if (start > stop || stop > self->range.length()) {
    PyErr_SetString(error_type(ErrorCode::kRange), "not a part of the Allocation");
    return nullptr;
  }
  if (!check_usable(self)) return nullptr;  // in a forked child nobody knows what is lost
  char* const address = add_export(self);
  if (address == nullptr) return nullptr;
  if (self->entry.lost) {
    drop_export(self);
    Py_RETURN_NONE;
  }
  if (self->queue != nullptr) self->queue->count_hit();
  return part_view(object, address + start, stop - start,
                   [](PyObject* allocation) { drop_export(self_of(allocation)); });
}

PyObject* write(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  // From here on the kernel copies, without the GIL and without page faults.
  constexpr Py_ssize_t kByKernel = 16384;
  AllocationObject* self = self_of(object);
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
  Status status;
  const auto size = static_cast<uint64_t>(data.len);
  if (offset > self->range.length() || size > self->range.length() - offset) {
    status = Status::error(ErrorCode::kRange, "more than the Allocation holds");
  } else if (self->core->readonly()) {
    status = Status::system_error(EACCES, "write");
  } else if (char* const address = add_export(self); address != nullptr) {
    if (data.len < kByKernel) {
      std::memcpy(address + offset, data.buf, size);
    } else {
      WithoutGil release;
      status =
          self->core->write(self->range.start + offset, static_cast<const char*>(data.buf), size);
    }
    drop_export(self);
  }
  PyBuffer_Release(&data);
  if (!status.ok()) set_error(status);
  if (PyErr_Occurred() != nullptr) return nullptr;
  Py_RETURN_NONE;
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
  self->core->forget(self->entry);
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
    {"pinned", get_pinned, nullptr,
     "False while the contents may be discarded: after unpin(), as long as no view is alive.",
     nullptr},
    {"_in_use", get_in_use, nullptr, "Whether a view is alive.", nullptr},
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
    {"unpin", unpin, METH_NOARGS,
     "unpin($self, /)\n--\n\n"
     "Allow the contents to be discarded when memory runs short, the one unpinned longest ago\n"
     "first. The range and the reference stay; discarded pages read as zero. While a view is "
     "alive\n"
     "the contents stay, and pages go only if no other handle has them pinned.\n\n"
     "Raises ClosedError after release(), ForkedError in a forked child."},
    {"pin", pin, METH_NOARGS,
     "pin($self, /)\n--\n\n"
     "Keep the contents from here on. False if they were discarded since unpin(), in part at\n"
     "least; True if they are what they were.\n\n"
     "Raises ClosedError after release(), ForkedError in a forked child."},
    {"_let_go", erased(let_go), METH_FASTCALL,
     "_let_go($self, queue, id, hash, /)\n--\n\nunpin(), into a cache's own queue."},
    {"_count_hits_in", count_hits_in, METH_O,
     "_count_hits_in($self, queue, /)\n--\n\nHave _peek() count for a queue before _let_go()."},
    {"_peek", erased(peek), METH_FASTCALL,
     "_peek($self, start, stop, /)\n--\n\n"
     "A read-only view of a part, or None if the contents were discarded."},
    {"_write", erased(write), METH_FASTCALL,
     "_write($self, offset, data, /)\n--\n\nCopy a buffer into the pages."},
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
