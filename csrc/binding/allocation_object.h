// Purpose: what an Allocation object is made of, and what its methods have in common.
//
// Invariants
//   1. owned is true from construction until the reference was given back (or given away).
//   2. While exports > 0 the reference is kept, whatever release() said: a live view holds its
//      pages.
//   3. The core counts the handle as unpinned iff unpin() was called last, not pin(), and exports
//      is 0: a live view pins. (But not in a forked child, and not once the file is closed.)
//   4. A child gets no lease on pages that no handle had pinned when it was forked: a handle on
//      them owns nothing there.
//   5. In a peer, unpinned says that the owner of the pages counts them as unpinned. A view takes that
//      back for good: when it goes, the owner may not be there to be asked.
#pragma once

#include <Python.h>

#include <cstdint>
#include <memory>

#include "binding/file_handle.h"
#include "pages/discard_queue.h"

namespace pgalloc::binding {

struct AllocationObject {
  PyObject_HEAD PyObject* memory_file;  // nullptr once collected
  std::shared_ptr<FileSeat> seat;       // where it finds its pages
  FileRange range;
  Py_ssize_t exports;
  Py_ssize_t pinning;                 // threads that are in core->pin() without the GIL
  std::shared_ptr<ChunkMap> mapping;  // while exports > 0
  Discardable entry;
  bool owned;
  bool released;
  bool viewed;    // the peer's file knows that there is a view
  bool unpinned;  // as far as its user is concerned
  bool
      discarded_remotely;  // a view has pinned it, and found its contents gone; pin() has not said so yet
  uint32_t generation;  // of the process that made it, or unpinned it last
  PyObject* weak_references;
};

inline AllocationObject* self_of(PyObject* self) {
  return reinterpret_cast<AllocationObject*>(self);
}

inline Pages& pages_of(AllocationObject* self) { return self->seat->pages(); }

// A new handle, of the class that set_allocation_class() was told, on pages of `memory_file`, whose
// references it takes over. New reference; or nullptr with an exception set, and the references are
// still the caller's.
PyObject* new_allocation(PyObject* memory_file, std::shared_ptr<FileSeat> seat, FileRange range);

// Copies `data` to the contents at `offset`. False with an exception set.
bool write_into(AllocationObject* self, uint64_t offset, const Py_buffer& data);

// Drops the reference, if the handle has one.
void give_back(AllocationObject* self);
// False with an exception set: released; and closed, or another process's.
bool check_owned(AllocationObject* self);
bool check_usable(AllocationObject* self);

// One more export: the address of the contents, which are pinned from here to drop_export(). nullptr
// with an exception set.
char* add_export(AllocationObject* self);
void drop_export(AllocationObject* self);
// Waits for a discard under way, without the GIL where that may take time.
void pin_in_core(AllocationObject* self, bool in_place);
// Where is_remote(): the file as this process has it.
PeerFile& peer_of(AllocationObject* self);
// One reference more, of this process, for another handle on a part of these pages.
Status add_reference(AllocationObject* self, FileRange part);
// Asks the owner of the pages.
bool pin_remote(AllocationObject* self);

// Methods, for discardable memory.
PyObject* allocation_unpin(PyObject* object, PyObject*);
PyObject* allocation_pin(PyObject* object, PyObject*);

}  // namespace pgalloc::binding
