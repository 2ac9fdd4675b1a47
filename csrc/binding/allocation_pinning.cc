// Purpose: the methods of Allocation for discardable memory: pin(), unpin(), and what caches need.
#include <new>
#include <utility>

#include "binding/allocation_object.h"
#include "binding/arguments.h"
#include "binding/errors.h"
#include "binding/patience.h"

namespace pgalloc::binding {

namespace {

bool unpin_in(AllocationObject* self, std::shared_ptr<DiscardQueue> queue, uint64_t id,
              uint64_t hash) {
  if (!check_usable(self)) return false;
  if (self->unpinned) return true;
  self->queue = std::move(queue);
  self->entry.queue = self->queue.get();
  self->entry.id = id;
  self->entry.hash = hash;
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
  const bool done = pages_of(self).is_remote() ? unpin_remote(self) : unpin_in(self, nullptr, 0, 0);
  if (!done) return nullptr;
  Py_RETURN_NONE;
}

// For caches, whose queues know what they hold by a number.
PyObject* allocation_unpin_into(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  if (count != 3) {
    PyErr_SetString(PyExc_TypeError, "_unpin_into() takes a queue, an id and a hash");
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
PyObject* allocation_count_hits_in(PyObject* object, PyObject* queue_object) {
  AllocationObject* self = self_of(object);
  auto queue = queue_of(queue_object);
  if (queue == nullptr || !check_usable(self)) return nullptr;
  if (!self->unpinned && self->entry.list == nullptr) self->queue = std::move(queue);
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

// A read-only view of [start, stop) that pins, or None if the contents were discarded.
PyObject* allocation_pinned_view(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  AllocationObject* self = self_of(object);
  uint64_t start = 0;
  uint64_t stop = 0;
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "_pinned_view() takes start and stop");
    return nullptr;
  }
  if (!as_u64(args[0], "start", &start) || !as_u64(args[1], "stop", &stop)) return nullptr;
  if (start > stop || stop > self->range.length()) {
    PyErr_SetString(error_type(ErrorCode::kRange), "not a part of the Allocation");
    return nullptr;
  }
  if (!check_usable(self)) return nullptr;
  if (self->generation !=
      process_generation()) {  // its owner discards without telling this process
    PyErr_SetString(error_type(ErrorCode::kForked),
                    "this Cache is the parent process's: make one in the forked child, or serve() "
                    "it in the parent and Cache.connect() in the child");
    return nullptr;
  }
  char* const address = add_export(self);
  if (address == nullptr) return nullptr;
  if (self->entry.discarded) {
    drop_export(self);
    Py_RETURN_NONE;
  }
  if (self->queue != nullptr) self->queue->count_hit();
  return part_view(object, address + start, stop - start,
                   [](PyObject* allocation) { drop_export(self_of(allocation)); });
}

}  // namespace pgalloc::binding
