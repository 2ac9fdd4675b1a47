// Purpose: what Python's MemoryFile object holds, and PeerFile's: the core file, and the two views over
// its whole address range that map_range() cuts its results from.
//
// Invariant: a view over the whole range never leaves its object; only slices of it that were
// checked against the file do.
#pragma once

#include <Python.h>

#include <memory>

#include "binding/without_gil.h"
#include "core/memory_file.h"

namespace pgalloc::binding {

// The views over all of a mapping, made when they are first needed.
class WholeViews {
 public:
  WholeViews() = default;
  ~WholeViews() { clear(); }
  WholeViews(const WholeViews&) = delete;
  WholeViews& operator=(const WholeViews&) = delete;

  // A memoryview of `range`, which must be mapped. New reference, or nullptr with an exception set.
  PyObject* view(const Pages& pages, FileRange range, bool readonly);
  void clear() {
    Py_CLEAR(writable_);
    Py_CLEAR(readonly_);
  }

 private:
  PyObject* writable_ = nullptr;
  PyObject* readonly_ = nullptr;
};

class FileHandle {
 public:
  explicit FileHandle(std::shared_ptr<MemoryFile> file) : file_(std::move(file)) {}
  ~FileHandle();
  FileHandle(const FileHandle&) = delete;
  FileHandle& operator=(const FileHandle&) = delete;

  const std::shared_ptr<MemoryFile>& file() const { return file_; }
  MemoryFile& core() const { return *file_; }
  PyObject* view(FileRange range, bool readonly) { return views_.view(*file_, range, readonly); }
  // Closes the file, and lets go of its mapping: what is still viewed keeps it (row I2).
  Status close(bool keep_descriptor);

 private:
  std::shared_ptr<MemoryFile> file_;
  WholeViews views_;
};

// The handle of a MemoryFile object (or subclass); nullptr with TypeError set for anything else,
// and with RuntimeError for one whose __init__ never ran.
FileHandle* handle_of(PyObject* memory_file);

// What a handle on pages of `object`, a MemoryFile or a PeerFile, works on; nullptr as above.
std::shared_ptr<Pages> pages_of(PyObject* object);
// The peer behind a PeerFile object; nullptr, without an exception, for anything else.
std::shared_ptr<PeerFile> peer_of(PyObject* object);

// Waits, without the GIL, until `range` has come from the image that is being loaded. False with an
// exception set. To be called before the core's map() wherever that must not block.
bool await_pages(PyObject* memory_file, const Pages& pages, FileRange range);

// A memoryview over all of `chunks`, mapped or not. It keeps the mapping alive, and nothing else:
// rows E4 and I2 say that mappings go when the last view goes.
PyObject* whole_view(std::shared_ptr<ChunkMap> chunks, bool readonly);
bool add_mapping_type(PyObject* module);

// A read-only memoryview of `size` bytes at `address`, on behalf of `owner`: `release(owner)` is
// called when it goes, or here if there is none. New reference, or nullptr with an exception set.
PyObject* part_view(PyObject* owner, const char* address, uint64_t size,
                    void (*release)(PyObject*));
bool add_part_type(PyObject* module);

// The queue behind a DiscardQueue object; nullptr with TypeError set for anything else.
std::shared_ptr<DiscardQueue> queue_of(PyObject* object);

// Adds the calls that run millions of times to the type that pybind11 made.
bool add_hot_calls(PyObject* memory_file_type);
bool add_allocation_type(PyObject* module);

}  // namespace pgalloc::binding
