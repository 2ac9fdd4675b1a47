#include "binding/allocation_object.h"

#include <pybind11/pybind11.h>

#include "binding/errors.h"
#include "binding/range_type.h"

namespace pgalloc::binding {

namespace py = pybind11;

void give_back(AllocationObject* self) {
  if (!self->owned) return;
  self->owned = false;
  if (self->unpinned && self->generation != process_generation()) return;  // invariant 4
  const Status status = pages_of(self).end_handle(self->entry);
  // A closed file has let go of everything; a forked child never owned it.
  if (status.ok() || status.code() == ErrorCode::kClosed || status.code() == ErrorCode::kForked ||
      status.code() == ErrorCode::kOwnerGone) {
    return;
  }
  // Another caller dropped this handle's reference. There is no caller here to tell.
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

bool check_usable(AllocationObject* self) {
  if (!check_owned(self)) return false;
  const Status status = pages_of(self).check_usable();
  if (!status.ok()) set_error(status);
  return status.ok();
}

void pin_in_core(AllocationObject* self, bool in_place) {
  if (!pages_of(self).discarding()) {
    pages_of(self).pin(self->entry, in_place);
    return;
  }
  ++self->pinning;
  {
    WithoutGil release;
    pages_of(self).pin(self->entry, in_place);
  }
  --self->pinning;
}

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

bool pin_remote(AllocationObject* self) {
  const int intact = ask_owner(self, "_pin_remote");
  if (intact < 0) return false;
  if (self->generation != process_generation()) {  // invariant 4: its pages are others', too
    const Status status = pages_of(self).inc_ref(self->range, 0);
    if (!status.ok()) {
      PyErr_SetString(error_type(ErrorCode::kForked),
                      "this allocation was unpinned when the process forked: it is the parent's");
      return false;
    }
    self->generation = process_generation();
  }
  self->unpinned = false;
  self->discarded_remotely = intact == 0;
  return true;
}

void drop_export(AllocationObject* self) {
  if (--self->exports > 0) return;
  self->mapping.reset();
  if (self->released) {
    give_back(self);
  } else if (self->unpinned && !pages_of(self).is_remote()) {
    (void)pages_of(self).unpin(self->entry);  // fails where it does not matter: closed, or forked
  }
}

char* add_export(AllocationObject* self) {
  if (!await_pages(self->memory_file, pages_of(self), self->range) || !check_owned(self)) {
    return nullptr;
  }
  if (self->unpinned && self->seat->orphaned()) {  // its owner discards without telling us
    set_error(pages_of(self).check_usable());
    return nullptr;
  }
  if (self->unpinned && pages_of(self).is_remote() && !pin_remote(self)) return nullptr;
  ++self->exports;
  // While another thread pins, only the core's lock says what became of the contents.
  if (self->pinning > 0 || self->entry.unpinned) pin_in_core(self, /*in_place=*/true);
  if (check_owned(self)) {
    const Result<char*> address = pages_of(self).map(self->range);
    if (address.ok()) {
      if (self->mapping == nullptr) self->mapping = pages_of(self).chunks();
      return *address;
    }
    set_error(address.status());
  }
  const py::error_scope keep_error;
  drop_export(self);
  return nullptr;
}

}  // namespace pgalloc::binding
