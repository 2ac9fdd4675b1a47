// Purpose: what Python's MemoryFile object holds, and PeerFile's: the seat where its handles find the
// pages, and the two views over its whole address range that map_range() cuts its results from.
//
// Invariant: a view over the whole range never leaves its object; only slices of it that were
// checked against the file do.
#pragma once

#include <Python.h>

#include <memory>

#include "binding/without_gil.h"
#include "file/file_seat.h"
#include "file/memory_file.h"
#include "sharing/peer_file.h"

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

// Both kinds of file have these; what is here works in a forked child, too.
class PagesHandle {
 public:
  const std::shared_ptr<FileSeat>& seat() const { return seat_; }
  Pages& pages() const { return seat_->pages(); }
  PyObject* view(FileRange range, bool readonly) { return views_.view(pages(), range, readonly); }
  // The file as a peer of its owner has it; nullptr where this process is none.
  PeerFile* peer() const { return seat_->orphaned() ? nullptr : latest_peer(); }

 protected:
  explicit PagesHandle(std::shared_ptr<FileSeat> seat) : seat_(std::move(seat)) {}
  ~PagesHandle();
  PagesHandle(const PagesHandle&) = delete;
  PagesHandle& operator=(const PagesHandle&) = delete;

  // The same, or in a forked child what the process was that used the file last.
  PeerFile* latest_peer() const {
    Pages& latest = seat_->latest();
    return latest.is_remote() ? static_cast<PeerFile*>(&latest) : nullptr;
  }

  std::shared_ptr<FileSeat> seat_;
  WholeViews views_;
};

class FileHandle : public PagesHandle {
 public:
  // `name` is what errors call the file; nullptr for one without a name.
  FileHandle(const std::shared_ptr<MemoryFile>& file, PyObject* name)
      : PagesHandle(std::make_shared<FileSeat>(file)), file_(file), name_(Py_XNewRef(name)) {}
  ~FileHandle();

  // The file in the process that owns it; elsewhere nullptr, or ForkedError.
  MemoryFile* owned() const { return seat_->owned(); }
  MemoryFile& core() const;
  std::shared_ptr<MemoryFile> shared() const { return core().shared_from_this(); }
  // What `ask` says of the file; in a forked child, which cannot know, an empty answer.
  template <class Ask>
  auto ask(Ask ask) const {
    MemoryFile* const file = owned();
    return file == nullptr ? decltype(ask(*file)){} : ask(*file);
  }
  // For what never changes, and is known without a lock: in a forked child, too.
  const MemoryFile& facts() const { return *file_; }
  PyObject* name() const { return name_; }  // borrowed

  bool closed() const;
  // Closes the file, and lets go of its mapping: what is still viewed keeps it (row I2). In a peer,
  // gives back its share.
  Status close(bool keep_descriptor);

 private:
  std::shared_ptr<MemoryFile> file_;
  PyObject* const name_;
};

class PeerHandle : public PagesHandle {
 public:
  explicit PeerHandle(const std::shared_ptr<PeerFile>& peer)
      : PagesHandle(std::make_shared<FileSeat>(std::shared_ptr<Pages>(peer))) {}

  // For what never changes, as facts() above.
  const PeerFile& facts() const { return *latest_peer(); }
  // Gives all leases back, but those on what is viewed. True if there are such.
  bool leave() {
    const bool keeps = latest_peer()->close();
    views_.clear();
    return keeps;
  }
};

// The handle of a MemoryFile object (or subclass); nullptr with TypeError set for anything else,
// and with RuntimeError for one whose __init__ never ran.
FileHandle* handle_of(PyObject* memory_file);
// That of a PeerFile; nullptr, without an exception, for anything else.
PeerHandle* peer_handle_of(PyObject* object);

// Where a handle on pages of `object`, a MemoryFile or a PeerFile, finds them; nullptr as above.
std::shared_ptr<FileSeat> seat_of(PyObject* object);

// Sets the exception for `status`, which an operation of pgalloc's on pages of `object` ended with: a
// MemoryFile, whose name it gets, a PeerFile, or nullptr. Returns nullptr.
PyObject* set_file_error(const Status& status, const char* operation, PyObject* object);

// Waits, without the GIL, until `range` has come from the image that is being loaded. False with an
// exception set. To be called before the core's map() wherever that must not block.
bool await_pages(PyObject* memory_file, const Pages& pages, FileRange range);

// A memoryview over all of `chunks`, mapped or not. It keeps the mapping alive, and nothing else:
// rows E4 and I2 say that mappings go when the last view goes.
PyObject* whole_view(std::shared_ptr<ChunkMap> chunks, bool readonly);
bool add_mapping_type(PyObject* module);

// Adds the calls that run millions of times to the type that pybind11 made.
bool add_hot_calls(PyObject* memory_file_type);
bool add_allocation_type(PyObject* module);

}  // namespace pgalloc::binding
