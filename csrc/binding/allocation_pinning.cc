// Purpose: the methods of Allocation for discardable memory: pin() and unpin().
#include <new>
#include <utility>

#include "binding/allocation_object.h"
#include "binding/arguments.h"
#include "binding/errors.h"
#include "binding/patience.h"

namespace pgalloc::binding {

namespace {

bool unpin_in_core(AllocationObject* self) {
  if (!check_usable(self)) return false;
  if (self->unpinned) return true;
  self->entry.discarded = false;
  if (self->exports == 0) {
    const Status status = pages_of(self).unpin(self->entry);
    if (!status.ok()) {
      set_error(status);
      return false;
    }
  }
  self->unpinned = true;
  return true;
}

// While a view is alive, or another handle of this process is on the pages, they stay pinned: true, as
// far as anybody can tell.
bool unpin_remote(AllocationObject* self) try {
  if (!check_usable(self)) return false;
  if (self->unpinned || self->exports > 0) return true;
  const std::shared_ptr<FileSeat> seat = self->seat;  // whatever a signal handler does meanwhile
  const auto peer = peer_of(self).shared_from_this();
  // From before the owner is asked, so that no contents are taken for kept that are not.
  self->unpinned = true;
  self->generation = process_generation();
  self->discarded_remotely = false;
  const Result<bool> unpinned = patiently(
      peer->link().usual_patience(),
      [&](const OwnerLink::Patience& patience) { return peer->unpin(self->range, patience); });
  if (unpinned.ok()) {
    if (!*unpinned) self->unpinned = false;
    return !a_handler_raises();
  }
  // Else the owner may count it as unpinned; or a fork did, and its child has no lease on it.
  const ErrorCode code = unpinned.status().code();
  const bool refused =
      code != ErrorCode::kInterrupted && code != ErrorCode::kTimedOut && code != ErrorCode::kForked;
  if (refused) self->unpinned = false;
  return set_error(unpinned.status()), false;
} catch (const std::bad_alloc&) {
  PyErr_NoMemory();
  return false;
}

}  // namespace

PyObject* allocation_unpin(PyObject* object, PyObject*) {
  AllocationObject* self = self_of(object);
  const bool done = pages_of(self).is_remote() ? unpin_remote(self) : unpin_in_core(self);
  if (!done) return nullptr;
  Py_RETURN_NONE;
}

PyObject* allocation_pin(PyObject* object, PyObject*) {
  AllocationObject* self = self_of(object);
  if (!check_usable(self)) return nullptr;
  if (pages_of(self).is_remote()) {
    if (self->unpinned && !pin_remote(self)) return nullptr;
    return PyBool_FromLong(!std::exchange(self->discarded_remotely, false));
  }
  if (!self->unpinned) Py_RETURN_TRUE;
  self->unpinned = false;
  pin_in_core(self, /*in_place=*/false);
  return PyBool_FromLong(!self->entry.discarded);
}

}  // namespace pgalloc::binding
