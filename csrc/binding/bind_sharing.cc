// Purpose: pages of other processes: a peer's link to their owner, its file, and fork leases, for
// pgalloc.sharing.
#include <pybind11/pybind11.h>

#include <string>
#include <unordered_map>
#include <utility>

#include "binding/arguments.h"
#include "binding/bind.h"
#include "binding/errors.h"
#include "binding/file_handle.h"
#include "binding/range_type.h"
#include "binding/self.h"
#include "sharing/fork_leases.h"
#include "sharing/peer_file.h"

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

std::unique_ptr<PeerHandle> make_peer(int fd, uint64_t id, uint64_t capacity, bool readonly,
                                      Self<OwnerLink> link) {
  return std::make_unique<PeerHandle>(
      value_or_throw(PeerFile::create(fd, {id, capacity, readonly}, link->shared_from_this())));
}

py::object map_range(Self<PeerHandle> handle, const py::object& range_object, bool readonly) {
  const FileRange range = file_range(range_object);
  value_or_throw(handle->pages().map(range));
  PyObject* view = handle->view(range, readonly || handle->facts().readonly());
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

// The file as this process, a peer, has it.
template <class Handle>
PeerFile& local(Self<Handle> handle) {
  PeerFile* const peer = handle->peer();
  if (peer == nullptr) throw_if_error(OrphanedPages::refuse());
  return *peer;
}

// What this process, as a peer, does by itself, for pgalloc.sharing: with a PeerFile, and in a forked
// child with its parent's MemoryFile.
template <class Handle>
void bind_local_calls(py::class_<Handle>& type) {
  type.def("_adopt_local",
           [](Self<Handle> handle, const py::object& range) {
             throw_if_error(local(handle).adopt(file_range(range)));
           })
      .def("_has_unique_ref_local",
           [](Self<Handle> handle, const py::object& range) {
             return value_or_throw(local(handle).has_unique_ref(file_range(range)));
           })
      .def("_holds_local",
           [](Self<Handle> handle, const py::object& range) {
             const PeerFile* const peer = handle->peer();
             return peer != nullptr && peer->holds(file_range(range));
           })
      .def("_prepare_local", [](Self<Handle> handle, const py::object& range,
                                int mode) { prepare(local(handle), file_range(range), mode); })
      .def("_inherit_from_peer",
           [](Self<Handle> handle, Self<OwnerLink> link, const py::iterable& unpinned) {
             PeerFile* const parents = handle->parents_peer();
             if (parents == nullptr) throw py::value_error("the parent was no peer");
             handle->become(value_or_throw(
                 PeerFile::inherit(*parents, link->shared_from_this(), file_ranges(unpinned))));
           });
}

void bind_peer(py::module_& module) {
  py::class_<PeerHandle> type(module, "PeerFile");
  type.def(py::init(&make_peer), py::arg("fd"), py::arg("id"), py::arg("capacity"),
           py::arg("readonly"), py::arg("link"))
      .def("inc_ref",
           [](Self<PeerHandle> handle, const py::object& range) {
             throw_if_error(handle->pages().inc_ref(file_range(range), 0));
           })
      .def("dec_ref",
           [](Self<PeerHandle> handle, const py::object& range) {
             throw_if_error(handle->pages().dec_ref(file_range(range)));
           })
      .def("_map_range", &map_range)
      .def("_leave", [](Self<PeerHandle> handle) { handle->leave(); })
      .def("_check_usable",
           [](Self<PeerHandle> handle) { throw_if_error(handle->pages().check_usable()); })
      .def_property_readonly(
          "closed", [](Self<PeerHandle> handle) { return handle->facts().closed(); },
          "Whether close() was called.")
      .def_property_readonly("_forked",
                             [](Self<PeerHandle> handle) { return handle->seat()->orphaned(); })
      .def_property_readonly("_id",
                             [](Self<PeerHandle> handle) { return handle->facts().identity().id; })
      .def_property_readonly("_fd", [](Self<PeerHandle> handle) { return handle->facts().fd(); })
      .def_property_readonly(
          "capacity", [](Self<PeerHandle> handle) { return handle->facts().identity().capacity; },
          "No byte at or beyond this offset is ever allocated.")
      .def_property_readonly(
          "readonly", [](Self<PeerHandle> handle) { return handle->facts().readonly(); },
          "Whether this process can only read the pages.")
      .def_property_readonly(
          "total_size", [](Self<PeerHandle> handle) { return handle->facts().size(); },
          "Size of the backing file in bytes.")
      .def_property_readonly(
          "leased",
          [](Self<PeerHandle> handle) {
            const PeerFile* const peer = handle->peer();
            return peer == nullptr ? 0 : peer->leased_bytes();
          },
          "Bytes of the pages that this process has handles on.");
  bind_local_calls(type);

  // bind_memory_file() made the class; these are further methods of it.
  auto file_type = py::reinterpret_borrow<py::class_<FileHandle>>(module.attr("MemoryFile"));
  file_type
      .def("_inc_ref_peer",
           [](Self<FileHandle> handle, const py::object& range) {
             throw_if_error(local(handle).inc_ref(file_range(range), 0));
           })
      .def("_leave", [](Self<FileHandle> handle) { local(handle).close(); });
  bind_local_calls(file_type);
}

// --- Forked children -----------------------------------------------------------------------------

// In the child: those of `files` on which it has leases become a peer's. The ids of these.
py::list become_fork_peers(Self<OwnerLink> link, const py::iterable& files) {
  std::unordered_map<uint64_t, ForkLease> leases;
  for (ForkLease& lease : ForkLeases::take()) {
    if (lease.taken) leases.emplace(lease.file->id(), std::move(lease));
  }
  py::list ids;
  for (const py::handle& object : files) {
    FileHandle* const handle = handle_of(object.ptr());
    if (handle == nullptr) throw py::error_already_set();
    const auto lease = leases.find(handle->facts().id());
    if (lease == leases.end()) continue;
    const MemoryFile& file = handle->facts();
    file.chunks()->reset_after_fork();
    auto peer = PeerFile::inherit(file.chunks(), file.fd(), {file.id(), file.capacity(), false},
                                  link->shared_from_this(), lease->second.pages);
    if (!peer.ok()) continue;  // it stays the parent's
    handle->become(std::move(*peer));
    ids.append(file.id());
  }
  return ids;
}

}  // namespace

PeerHandle* peer_handle_of(PyObject* object) {
  return py::isinstance<PeerHandle>(object) ? constructed<PeerHandle>(object) : nullptr;
}

void bind_sharing(py::module_& module) {
  bind_link(module);
  bind_peer(module);
  module.def("arm_fork_leases", &ForkLeases::arm);
  module.def("become_fork_peers", &become_fork_peers, py::arg("link"), py::arg("files"));
}

}  // namespace pgalloc::binding
