// Purpose: pages that processes share: the owner's tables of leases, a peer's file, and what a forked
// child inherits, for pgalloc.sharing.
#include <pybind11/pybind11.h>

#include <string>
#include <utility>

#include "binding/arguments.h"
#include "binding/bind.h"
#include "binding/errors.h"
#include "binding/file_handle.h"
#include "binding/range_type.h"
#include "binding/self.h"
#include "core/inheritance.h"
#include "core/lease_table.h"
#include "core/peer_file.h"

namespace pgalloc::binding {

namespace py = pybind11;

namespace {

FileRange file_range(const py::object& object) {
  FileRange range;
  if (!as_file_range(object.ptr(), &range)) throw py::error_already_set();
  return range;
}

std::vector<FileRange> file_ranges(const py::iterable& objects) {
  std::vector<FileRange> ranges;
  for (const py::handle& object : objects) {
    ranges.push_back(file_range(py::reinterpret_borrow<py::object>(object)));
  }
  return ranges;
}

void bind_link(py::module_& module) {
  py::class_<OwnerLink, std::shared_ptr<OwnerLink>>(module, "OwnerLink")
      .def(py::init([](int fd, const py::bytes& prefix) {
             return value_or_throw(OwnerLink::create(fd, prefix));
           }),
           py::arg("fd"), py::arg("prefix"))
      .def("flush",
           [](Self<OwnerLink> link, const py::object& timeout_s) {
             return wait_interruptibly(timeout_s,
                                       [&](auto deadline) { return link->flush(deadline); });
           })
      .def("give_back", [](Self<OwnerLink> link, uint64_t file,
                           const py::object& range) { link->give_back(file, file_range(range)); })
      .def("break_off", [](Self<OwnerLink> link) { link->break_off(); })
      .def_property_readonly("broken", [](Self<OwnerLink> link) { return link->broken(); })
      .def(
          "park", [](Self<OwnerLink> link) { link->park(); }, py::call_guard<WithoutGil>())
      .def("resume", [](Self<OwnerLink> link) { link->resume(); });
}

// --- Peers ---------------------------------------------------------------------------------------

struct PeerHandle {
  std::shared_ptr<PeerFile> file;
  WholeViews views;
  ~PeerHandle() {
    views.clear();
    WithoutGil release;
    file.reset();
  }
};

std::unique_ptr<PeerHandle> make_peer(int fd, uint64_t id, uint64_t capacity, bool readonly,
                                      Self<OwnerLink> link) {
  auto handle = std::make_unique<PeerHandle>();
  handle->file =
      value_or_throw(PeerFile::create(fd, {id, capacity, readonly}, link->shared_from_this()));
  return handle;
}

py::object map_range(Self<PeerHandle> handle, const py::object& range_object, bool readonly) {
  const FileRange range = file_range(range_object);
  value_or_throw(handle->file->map(range));
  PyObject* view = handle->views.view(*handle->file, range, readonly || handle->file->readonly());
  if (view == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(view);
}

// What new pages were asked to be like, by the numbers of AllocationMode.
void prepare(PeerFile& file, FileRange range, int mode) {
  Status status;
  {
    WithoutGil release;
    if (mode == static_cast<int>(AllocationMode::kAllocateAndCommit)) status = file.commit(range);
    if (mode == static_cast<int>(AllocationMode::kAllocateAndWritePopulate)) {
      status = file.populate(range);
    }
  }
  throw_if_error(status);
}

PeerFile& heir_of(const py::object& memory_file) {
  const FileHandle* handle = handle_of(memory_file.ptr());
  if (handle == nullptr) throw py::error_already_set();
  if (handle->file()->heir() == nullptr) {
    throw_if_error(Status::error(ErrorCode::kForked, "this process is no peer of its parent"));
  }
  return *handle->file()->heir();
}

// The same for a MemoryFile in a forked child as a PeerFile has as methods.
void bind_heir(py::module_& module) {
  module.def("heir_adopt_lease", [](const py::object& file, const py::object& range) {
    throw_if_error(heir_of(file).adopt(file_range(range)));
  });
  module.def("heir_has_unique_ref", [](const py::object& file, const py::object& range) {
    return value_or_throw(heir_of(file).has_unique_ref(file_range(range)));
  });
  module.def("heir_inc_ref", [](const py::object& file, const py::object& range) {
    throw_if_error(heir_of(file).inc_ref(file_range(range), 0));
  });
  module.def("heir_holds", [](const py::object& file, const py::object& range) {
    return heir_of(file).holds(file_range(range));
  });
  module.def("heir_prepare", [](const py::object& file, const py::object& range, int mode) {
    prepare(heir_of(file), file_range(range), mode);
  });
  module.def("heir_leave", [](const py::object& file) { heir_of(file).close(); });
  module.def("heir_rehome",
             [](const py::object& file, Self<OwnerLink> link, const py::iterable& unpinned) {
               heir_of(file).rehome(link->shared_from_this(), file_ranges(unpinned));
             });
}

void bind_peer(py::module_& module) {
  py::class_<PeerHandle>(module, "PeerFile")
      .def(py::init(&make_peer), py::arg("fd"), py::arg("id"), py::arg("capacity"),
           py::arg("readonly"), py::arg("link"))
      .def("_adopt_lease",
           [](Self<PeerHandle> handle, const py::object& range) {
             throw_if_error(handle->file->adopt(file_range(range)));
           })
      .def("inc_ref",
           [](Self<PeerHandle> handle, const py::object& range) {
             throw_if_error(handle->file->inc_ref(file_range(range), 0));
           })
      .def("dec_ref",
           [](Self<PeerHandle> handle, const py::object& range) {
             throw_if_error(handle->file->dec_ref(file_range(range)));
           })
      .def("_has_unique_ref_here",
           [](Self<PeerHandle> handle, const py::object& range) {
             return value_or_throw(handle->file->has_unique_ref(file_range(range)));
           })
      .def("_holds_here",
           [](Self<PeerHandle> handle, const py::object& range) {
             return handle->file->holds(file_range(range));
           })
      .def("_prepare", [](Self<PeerHandle> handle, const py::object& range,
                          int mode) { prepare(*handle->file, file_range(range), mode); })
      .def("_map_range", &map_range)
      .def("_leave",
           [](Self<PeerHandle> handle) {
             handle->file->close();
             handle->views.clear();
           })
      .def("_rehome",
           [](Self<PeerHandle> handle, Self<OwnerLink> link, const py::iterable& unpinned) {
             handle->file->rehome(link->shared_from_this(), file_ranges(unpinned));
           })
      .def("_check_usable",
           [](Self<PeerHandle> handle) { throw_if_error(handle->file->check_usable()); })
      .def_property_readonly(
          "closed", [](Self<PeerHandle> handle) { return handle->file->closed(); },
          "Whether close() was called.")
      .def_property_readonly("_forked",
                             [](Self<PeerHandle> handle) { return handle->file->forked(); })
      .def_property_readonly("_id",
                             [](Self<PeerHandle> handle) { return handle->file->identity().id; })
      .def_property_readonly("_fd", [](Self<PeerHandle> handle) { return handle->file->fd(); })
      .def_property_readonly(
          "capacity", [](Self<PeerHandle> handle) { return handle->file->identity().capacity; },
          "No byte at or beyond this offset is ever allocated.")
      .def_property_readonly(
          "readonly", [](Self<PeerHandle> handle) { return handle->file->readonly(); },
          "Whether this process can only read the pages.")
      .def_property_readonly(
          "total_size", [](Self<PeerHandle> handle) { return handle->file->size(); },
          "Size of the backing file in bytes.")
      .def_property_readonly(
          "leased", [](Self<PeerHandle> handle) { return handle->file->leased_bytes(); },
          "Bytes of the pages that this process has handles on.");
}

// --- The owner -----------------------------------------------------------------------------------

std::unique_ptr<LeaseTable> make_table(const py::object& memory_file) {
  const FileHandle* handle = handle_of(memory_file.ptr());
  if (handle == nullptr) throw py::error_already_set();
  return std::make_unique<LeaseTable>(handle->file());
}

void bind_leases(py::module_& module) {
  py::class_<LeaseTable>(module, "LeaseTable")
      .def(py::init(&make_table), py::arg("memory_file"))
      .def("add", [](Self<LeaseTable> table,
                     const py::object& range) { throw_if_error(table->add(file_range(range))); })
      .def("remove", [](Self<LeaseTable> table, uint64_t start,
                        uint64_t end) { throw_if_error(table->remove({start, end})); })
      .def("hand_over",
           [](Self<LeaseTable> table, const py::object& range) {
             throw_if_error(table->hand_over(file_range(range)));
           })
      .def("has", [](Self<LeaseTable> table,
                     const py::object& range) { return table->has(file_range(range)); })
      .def("overlaps",
           [](Self<LeaseTable> table, const py::object& range) {
             return !table->held().set().is_empty_range(file_range(range));
           })
      .def("copy_from", [](Self<LeaseTable> table,
                           Self<LeaseTable> other) { throw_if_error(table->copy(*other)); })
      .def("drop_all", [](Self<LeaseTable> table) { table->drop_all(); })
      .def_property_readonly("nbytes", [](Self<LeaseTable> table) { return table->bytes(); });
}

// --- Forked children -----------------------------------------------------------------------------

// In the parent: (file id, table of the child's leases) for each file.
py::list take_leases_for_child() {
  std::vector<InheritedFile> files = Inheritance::take();
  py::list result;
  for (InheritedFile& inherited : files) {
    if (!inherited.ready) continue;
    auto table = std::make_unique<LeaseTable>(inherited.file);
    for (const auto& [range, refs] : inherited.pages) throw_if_error(table->add_lease(range));
    result.append(py::make_tuple(inherited.file->id(), std::move(table)));
  }
  WithoutGil release;  // it may be a file's last owner
  files.clear();
  return result;
}

// In the child: its files become peers of the parent's. The ids of those that did.
py::list inherit(Self<OwnerLink> link) {
  py::list ids;
  for (InheritedFile& inherited : Inheritance::take()) {
    if (!inherited.ready) continue;
    MemoryFile& file = *inherited.file;
    file.chunks()->reset_after_fork();
    auto heir = PeerFile::inherit(file.chunks(), file.fd(), {file.id(), file.capacity(), false},
                                  link->shared_from_this(), inherited.pages);
    if (!heir.ok()) continue;  // it stays the parent's
    file.inherit(std::move(*heir));
    ids.append(file.id());
  }
  return ids;
}

}  // namespace

std::shared_ptr<PeerFile> peer_of(PyObject* object) {
  if (!py::isinstance<PeerHandle>(object)) return nullptr;
  const PeerHandle* handle = constructed<PeerHandle>(object);
  return handle == nullptr ? nullptr : handle->file;
}

void bind_sharing(py::module_& module) {
  bind_link(module);
  bind_peer(module);
  bind_leases(module);
  bind_heir(module);
  module.def("arm_inheritance", &Inheritance::arm);
  module.def("take_leases_for_child", &take_leases_for_child);
  module.def("inherit", &inherit, py::arg("link"));
}

}  // namespace pgalloc::binding
