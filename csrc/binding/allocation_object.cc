#include "binding/allocation_object.h"

#include <pybind11/pybind11.h>

#include <new>
#include <optional>

#include "base/reserve.h"
#include "binding/errors.h"
#include "binding/patience.h"
#include "binding/range_type.h"

namespace pgalloc::binding {

namespace py = pybind11;

namespace {

// For callers that nothing can be thrown to. Nothing if there is no memory for the call.
template <class Call>
std::optional<Status> try_call(Call call) try {
  return call();
} catch (const std::bad_alloc&) {
  return std::nullopt;
}

}  // namespace

void give_back(AllocationObject* self) {
  if (!self->owned) return;
  self->owned = false;
  if (self->unpinned && self->generation != process_generation()) return;  // invariant 4
  const auto status = try_call(
      [&] { return with_reserve([&] { return pages_of(self).end_handle(self->entry); }); });
  // A closed file has let go of everything; a forked child never owned it.
  if (status && (status->ok() || status->code() == ErrorCode::kClosed ||
                 status->code() == ErrorCode::kForked || status->code() == ErrorCode::kOwnerGone)) {
    return;
  }
  // Another caller dropped this handle's reference, or there is no memory to drop it. There is no caller
  // here to tell.
  const py::error_scope keep_pending_error;
  if (!status || !try_call([&] { return set_error(*status), Status(); })) PyErr_NoMemory();
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

PeerFile& peer_of(AllocationObject* self) { return static_cast<PeerFile&>(pages_of(self)); }

Status add_reference(AllocationObject* self, FileRange part) try {
  const std::shared_ptr<FileSeat> seat = self->seat;  // whatever a signal handler does meanwhile
  if (pages_of(self).is_remote()) {
    const auto peer = peer_of(self).shared_from_this();
    PGALLOC_RETURN_IF_ERROR(patiently(
        peer->link().usual_patience(),
        [&](const OwnerLink::Patience& patience) { return peer->pin_others(part, patience); }));
    if (a_handler_raises()) return Status::error(ErrorCode::kInterrupted, "");
  }
  if (!pages_of(self).discarding()) return pages_of(self).inc_ref(part, 0);
  WithoutGil release;
  return pages_of(self).inc_ref(part, 0);
} catch (const std::bad_alloc&) {
  return Status::error(ErrorCode::kNoMemory, "no memory is left");
}

bool pin_remote(AllocationObject* self) try {
  const std::shared_ptr<FileSeat> seat = self->seat;  // whatever a signal handler does meanwhile
  const auto peer = peer_of(self).shared_from_this();
  const Result<bool> intact = patiently(
      peer->link().usual_patience(),
      [&](const OwnerLink::Patience& patience) { return peer->pin(self->range, patience); });
  if (!intact.ok()) return set_error(intact.status()), false;
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
  if (!*intact) self->discarded_remotely = true;
  return !a_handler_raises();
} catch (const std::bad_alloc&) {
  PyErr_NoMemory();
  return false;
}

void drop_export(AllocationObject* self) {
  if (--self->exports > 0) return;
  self->mapping.reset();
  if (self->viewed) {
    self->viewed = false;
    if (pages_of(self).is_remote()) {
      (void)try_call([&] { return peer_of(self).end_view(self->range), Status(); });
    }
  }
  if (self->released) {
    give_back(self);
  } else if (self->unpinned && !pages_of(self).is_remote()) {
    // Fails where it does not matter: closed, or forked. Without memory the pages stay.
    (void)try_call([&] { return pages_of(self).unpin(self->entry); });
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
  // Again, if a signal handler unpins it.
  while (self->unpinned && pages_of(self).is_remote()) {
    if (!pin_remote(self)) return nullptr;
  }
  ++self->exports;
  // While another thread pins, only the core's lock says what became of the contents.
  if (self->pinning > 0 || self->entry.unpinned) pin_in_core(self, /*in_place=*/true);
  if (check_owned(self)) {
    const Result<char*> address = pages_of(self).map(self->range);
    if (address.ok()) {
      if (self->mapping == nullptr) self->mapping = pages_of(self).chunks();
      if (!self->viewed && pages_of(self).is_remote()) {
        peer_of(self).begin_view(self->range);
        self->viewed = true;
      }
      return *address;
    }
    set_file_error(address.status(), "view", self->memory_file);
  }
  const py::error_scope keep_error;
  drop_export(self);
  return nullptr;
}

}  // namespace pgalloc::binding
