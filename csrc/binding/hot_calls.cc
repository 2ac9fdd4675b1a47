// Purpose: the calls of the range layer that run millions of times, as C-API methods: a call
// through pybind11's dispatcher costs about ten times as much as the work behind it.
//
// The GIL is kept for calls whose work is tens of nanoseconds under the core's lock. That is safe:
// a thread that holds that lock never waits for the GIL. It is released where the kernel or the
// reclaimer may take its time.
//
// Reading arguments may run Python code (__index__, __buffer__), and that may fork. So the file is
// looked up when all arguments are read, and no Python code runs from there until it has been used.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>

#include "binding/allocation_object.h"
#include "binding/arguments.h"
#include "binding/errors.h"
#include "binding/file_handle.h"
#include "binding/guarded.h"
#include "binding/range_type.h"
#include "sharing/broker.h"

namespace pgalloc::binding {

namespace py = pybind11;

namespace {

PyObject* none_or_error(const Status& status) {
  if (!status.ok()) return set_error(status);
  Py_RETURN_NONE;
}

// --- allocate, allocate_range ------------------------------------------------------------------------------

struct AllocateArguments {
  AllocateRequest request;
  PyObject* reader = nullptr;  // borrowed
};

bool set_keyword(const char* function, PyObject* name, PyObject* value, AllocateArguments* out) {
  if (PyUnicode_CompareWithASCIIString(name, "kind") == 0)
    return as_kind(value, &out->request.kind);
  if (PyUnicode_CompareWithASCIIString(name, "direction") == 0) {
    return as_direction(value, &out->request.direction);
  }
  if (PyUnicode_CompareWithASCIIString(name, "memcg_id") == 0) {
    return as_u32(value, "memcg_id", &out->request.memcg_id);
  }
  if (PyUnicode_CompareWithASCIIString(name, "mode") == 0) {
    return as_mode(value, &out->request.mode);
  }
  if (PyUnicode_CompareWithASCIIString(name, "huge") == 0) {
    return as_huge(value, &out->request.huge);
  }
  if (PyUnicode_CompareWithASCIIString(name, "reader") == 0) {
    out->reader = value == Py_None ? nullptr : value;
    return true;
  }
  PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument %R", function, name);
  return false;
}

bool parse_allocate(const char* function, PyObject* const* args, Py_ssize_t count, PyObject* names,
                    AllocateArguments* out) {
  PyObject* length = count == 1 ? args[0] : nullptr;
  const Py_ssize_t keywords = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
  for (Py_ssize_t i = 0; i < keywords; ++i) {
    PyObject* name = PyTuple_GET_ITEM(names, i);
    if (length == nullptr && PyUnicode_CompareWithASCIIString(name, "length") == 0) {
      length = args[count + i];
    } else if (!set_keyword(function, name, args[count + i], out)) {
      return false;
    }
  }
  if (count > 1 || length == nullptr) {
    PyErr_Format(PyExc_TypeError, "%s() takes one positional argument, length", function);
    return false;
  }
  if (out->reader != nullptr && !PyCallable_Check(out->reader)) {
    PyErr_SetString(PyExc_TypeError, "reader must be callable, like a file's readinto");
    return false;
  }
  return as_u64(length, "length", &out->request.length);
}

Result<FileRange> allocate(MemoryFile& file, const AllocateRequest& request) {
  Broker::start_if_it_lacks_its_thread();  // no other call may come
  const bool touches_kernel = file.prepares(request);
  bool must_wait = touches_kernel;
  if (!touches_kernel) {
    Result<FileRange> range = file.allocate(request, /*may_wait=*/false, &must_wait);
    if (!must_wait) return range;
  }
  WithoutGil release;
  return file.allocate(request, /*may_wait=*/true);
}

// In a forked child the owner of the pages is another process, which Python asks; or there is no way
// to ask it.
PyObject* ask_owner(PyObject* self, FileHandle* handle, const char* name, PyObject* const* args,
                    Py_ssize_t count, PyObject* names) {
  if (!handle->pages().is_remote()) return set_error(handle->pages().check_usable());
  PyObject* method = PyObject_GetAttrString(self, name);
  if (method == nullptr) return nullptr;
  PyObject* answer = PyObject_Vectorcall(method, args, static_cast<size_t>(count), names);
  Py_DECREF(method);
  return answer;
}

PyObject* allocate_range(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  FileHandle* handle = handle_of(self);
  if (handle == nullptr) return nullptr;
  AllocateArguments arguments;
  if (!parse_allocate("allocate_range", args, count, names, &arguments)) return nullptr;
  MemoryFile* const file = handle->owned();
  if (file == nullptr) return ask_owner(self, handle, "_allocate_range_remote", args, count, names);
  const Result<FileRange> range = allocate(*file, arguments.request);
  if (!range.ok()) return set_error(range.status(), "allocate", handle->name());
  PyObject* result = new_file_range(*range);
  if (result == nullptr) {
    (void)file->dec_ref(*range);
    return nullptr;
  }
  if (arguments.reader == nullptr) return result;
  PyObject* filled = PyObject_CallMethod(self, "_fill_range", "OO", result, arguments.reader);
  Py_DECREF(result);
  return filled;
}

// No Python code runs between the allocation and the handle that owns it, so an interrupt cannot leave
// pages without an owner.
PyObject* allocate_handle(PyObject* self, PyObject* const* args, Py_ssize_t count,
                          PyObject* names) {
  FileHandle* handle = handle_of(self);
  if (handle == nullptr) return nullptr;
  AllocateArguments arguments;
  if (!parse_allocate("allocate", args, count, names, &arguments)) return nullptr;
  MemoryFile* const file = handle->owned();
  if (file == nullptr) return ask_owner(self, handle, "_allocate_remote", args, count, names);
  const Result<FileRange> range = allocate(*file, arguments.request);
  if (!range.ok()) return set_error(range.status(), "allocate", handle->name());
  PyObject* result = new_allocation(self, handle->seat(), *range);
  if (result == nullptr) {
    (void)file->dec_ref(*range);
    return nullptr;
  }
  if (arguments.reader == nullptr) return result;
  PyObject* filled = PyObject_CallMethod(self, "_fill", "OO", result, arguments.reader);
  Py_DECREF(result);
  return filled;
}

// --- references ----------------------------------------------------------------------------------

PyObject* inc_ref(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  FileHandle* handle = handle_of(self);
  if (handle == nullptr) return nullptr;
  const Py_ssize_t keywords = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
  const bool by_keyword =
      count == 1 && keywords == 1 &&
      PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "memcg_id") == 0;
  if (!(keywords == 0 && (count == 1 || count == 2)) && !by_keyword) {
    PyErr_SetString(PyExc_TypeError, "inc_ref() takes a range and optionally a memcg_id");
    return nullptr;
  }
  FileRange range;
  uint32_t memcg_id = 0;
  if (!as_file_range(args[0], &range)) return nullptr;
  if (count + keywords == 2 && !as_u32(args[1], "memcg_id", &memcg_id)) return nullptr;
  MemoryFile* const file = handle->owned();
  if (file == nullptr) return ask_owner(self, handle, "_inc_ref_local", args, count, names);
  return none_or_error(file->inc_ref(range, memcg_id));
}

PyObject* dec_ref(PyObject* self, PyObject* argument) {
  FileHandle* handle = handle_of(self);
  FileRange range;
  if (handle == nullptr || !as_file_range(argument, &range)) return nullptr;
  if (MemoryFile* const file = handle->owned()) return none_or_error(file->dec_ref(range));
  return none_or_error(handle->pages().dec_ref(range));
}

PyObject* has_unique_ref(PyObject* self, PyObject* argument) {
  FileHandle* handle = handle_of(self);
  if (handle == nullptr) return nullptr;
  MemoryFile* const file = handle->owned();
  if (file == nullptr) {
    return ask_owner(self, handle, "_has_unique_ref_remote", &argument, 1, nullptr);
  }
  FileRange range;
  if (!as_file_range(argument, &range)) return nullptr;
  const Result<bool> unique = file->has_unique_ref(range);
  return unique.ok() ? PyBool_FromLong(*unique) : set_error(unique.status());
}

// --- map_range -----------------------------------------------------------------------------------

bool parse_access(PyObject* access, bool* readonly) {
  if (!PyUnicode_Check(access)) {
    PyErr_Format(PyExc_TypeError, "access must be a str, not %.100s", Py_TYPE(access)->tp_name);
    return false;
  }
  *readonly = PyUnicode_CompareWithASCIIString(access, "r") == 0;
  if (*readonly || PyUnicode_CompareWithASCIIString(access, "rw") == 0) return true;
  if (PyUnicode_FindChar(access, 'x', 0, PyUnicode_GET_LENGTH(access), /*direction=*/1) >= 0) {
    PyErr_SetString(PyExc_PermissionError, "pages of a MemoryFile cannot be mapped executable");
  } else {
    PyErr_Format(error_type(ErrorCode::kOption), "access must be 'r' or 'rw', not %R", access);
  }
  return false;
}

PyObject* map_range(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  FileHandle* handle = handle_of(self);
  if (handle == nullptr) return nullptr;
  PyObject* access = count == 2 ? args[1] : nullptr;
  if (names != nullptr && PyTuple_GET_SIZE(names) == 1 && count == 1 &&
      PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "access") == 0) {
    access = args[1];
  } else if (names != nullptr || count < 1 || count > 2) {
    PyErr_SetString(PyExc_TypeError, "map_range() takes a range and optionally an access");
    return nullptr;
  }
  FileRange range;
  bool readonly = false;
  if (!as_file_range(args[0], &range)) return nullptr;
  if (access != nullptr && !parse_access(access, &readonly)) return nullptr;
  if (!await_pages(self, handle->pages(), range)) return nullptr;
  MemoryFile* const file = handle->owned();
  const Result<char*> address = file != nullptr ? file->map(range) : handle->pages().map(range);
  return address.ok() ? handle->view(range, readonly)
                      : set_file_error(address.status(), "map_range", self);
}

std::array hot_methods = {
    PyMethodDef{
        "allocate", erased(guarded<allocate_handle>), METH_FASTCALL | METH_KEYWORDS,
        "allocate($self, length, *, kind=MemoryKind.ANONYMOUS, "
        "direction=Direction.BOTTOM_UP, memcg_id=0, mode=AllocationMode.ALLOCATE_ONLY, "
        "reader=None, huge=False)\n--\n\n"
        "Allocate `length` bytes (whole pages) that read as zero, as a handle that owns them.\n\n"
        "With a `reader`, fill them: it is called with the writable rest of the buffer until all\n"
        "bytes are there, like file.readinto.\n\n"
        "With `huge`, in huge pages (pgalloc.HUGE_PAGE_SIZE) as far as `length` has whole ones "
        "and\n"
        "the kernel gives them: the first touch of one commits all of it. None: if the kernel "
        "offers\n"
        "them, for what is written in full anyway.\n\n"
        "Raises RangeError for a bad length, OutOfMemoryError when there is no place or\n"
        "max_allocatable_bytes would be exceeded, OSError when the kernel refuses the memory,\n"
        "FillError (which carries what was filled) when the reader fails or ends early."},
    PyMethodDef{
        "allocate_range", erased(guarded<allocate_range>), METH_FASTCALL | METH_KEYWORDS,
        "allocate_range($self, length, *, kind=MemoryKind.ANONYMOUS, "
        "direction=Direction.BOTTOM_UP, memcg_id=0, mode=AllocationMode.ALLOCATE_ONLY, "
        "reader=None, huge=False)\n--\n\n"
        "Allocate `length` bytes (whole pages) that read as zero and return their FileRange.\n\n"
        "Every page has one reference, which the caller owns: balance it with dec_ref().\n"
        "`huge` as in allocate().\n"
        "Raises RangeError for a bad length, OutOfMemoryError when there is no place or\n"
        "max_allocatable_bytes would be exceeded, OSError when the kernel refuses the\n"
        "memory, FillError when `reader` ends early or fails."},
    PyMethodDef{
        "inc_ref", erased(guarded<inc_ref>), METH_FASTCALL | METH_KEYWORDS,
        "inc_ref($self, range, memcg_id=0)\n--\n\n"
        "Add one reference to every page of `range`, which may cover parts of several\n"
        "allocations. Pages that no memory cgroup pays for yet are charged to memcg_id.\n\n"
        "Raises RangeError unless the whole range is allocated, and RefCountError for pages\n"
        "at 0 references; nothing has changed then."},
    PyMethodDef{"dec_ref", guarded<dec_ref>, METH_O,
                "dec_ref($self, range, /)\n--\n\n"
                "Drop one reference of every page of `range`. Pages that reach 0 go back to the\n"
                "kernel in the background.\n\n"
                "Raises RangeError and RefCountError as inc_ref() does."},
    PyMethodDef{
        "has_unique_ref", guarded<has_unique_ref>, METH_O,
        "has_unique_ref($self, range, /)\n--\n\n"
        "Whether every page of `range` has exactly one reference. Raises RangeError unless\n"
        "the whole range is allocated."},
    PyMethodDef{
        "map_range", erased(guarded<map_range>), METH_FASTCALL | METH_KEYWORDS,
        "map_range($self, range, access='rw')\n--\n\n"
        "One contiguous memoryview of any non-empty range inside the file, writable ('rw') or\n"
        "not ('r'). The view keeps the mapping alive, not the pages: hold a reference on\n"
        "them (or use Allocation.view()).\n\n"
        "Raises PermissionError when `access` asks for execution, RangeError for a range\n"
        "outside the file."},
};

}  // namespace

bool add_hot_calls(PyObject* memory_file_type) {
  auto* type = reinterpret_cast<PyTypeObject*>(memory_file_type);
  for (PyMethodDef& method : hot_methods) {
    PyObject* descriptor = PyDescr_NewMethod(type, &method);
    if (descriptor == nullptr) return false;
    const int result = PyObject_SetAttrString(memory_file_type, method.ml_name, descriptor);
    Py_DECREF(descriptor);
    if (result < 0) return false;
  }
  return true;
}

}  // namespace pgalloc::binding
