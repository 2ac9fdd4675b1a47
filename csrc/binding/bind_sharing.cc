// Purpose: pages of other processes: a peer's link to their owner, and its file, for
// pgalloc.sharing.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "binding/allocation_object.h"
#include "binding/arguments.h"
#include "binding/bind.h"
#include "binding/errors.h"
#include "binding/file_handle.h"
#include "binding/patience.h"
#include "binding/range_type.h"
#include "binding/self.h"
#include "binding/withdraw.h"
#include "sharing/connecting.h"
#include "sharing/peer_file.h"

namespace pgalloc::binding {

namespace py = pybind11;

namespace {

FileRange file_range(const py::object& object) {
  FileRange range;
  if (!as_file_range(object.ptr(), &range)) throw py::error_already_set();
  return range;
}

std::chrono::nanoseconds seconds(double count) {
  constexpr double kLongest = 1e9;  // about 30 years, and far from overflow
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
      std::chrono::duration<double>(std::clamp(count, 0.0, kLongest)));
}

// What `ask` says, with the patience that is usual for the link. If a signal handler raises instead,
// give_back(the answer) is called.
template <class Ask, class GiveBack>
auto ask_owner(OwnerLink& link, Ask ask, GiveBack give_back) {
  auto answer = patiently(link.usual_patience(), ask);
  if (answer.ok() && a_handler_raises()) {
    give_back(answer);
    throw py::error_already_set();
  }
  return answer;
}
// For answers that hold nothing, or give it back by themselves.
template <class Ask>
auto ask_owner(OwnerLink& link, Ask ask) {
  return ask_owner(link, ask, [](const auto&) {});
}

// --- The link ------------------------------------------------------------------------------------

// A descriptor that has arrived, and belongs to this.
class ArrivedDescriptor {
 public:
  explicit ArrivedDescriptor(int fd) : reply_{{}, fd} {}
  ~ArrivedDescriptor() { reply_.close_descriptor(); }
  ArrivedDescriptor(const ArrivedDescriptor&) = delete;
  ArrivedDescriptor& operator=(const ArrivedDescriptor&) = delete;

  int fd() const { return reply_.descriptor; }

 private:
  OwnerLink::Reply reply_;
};

// A request that brings bytes, and perhaps a descriptor: (bytes, a descriptor or None).
py::tuple request(Self<OwnerLink> link, int op, const py::bytes& payload) {
  struct Brought {
    std::string payload;
    std::unique_ptr<ArrivedDescriptor> descriptor;
  };
  const auto brought = std::make_shared<Brought>();
  OwnerLink::Exchange exchange{[brought](OwnerLink::Reply& reply) {
                                 brought->payload = reply.payload;
                                 if (reply.descriptor < 0) return;
                                 brought->descriptor =
                                     std::make_unique<ArrivedDescriptor>(reply.descriptor);
                                 reply.descriptor = -1;
                               },
                               [brought] { brought->descriptor.reset(); }};
  const std::string text = payload;
  throw_if_error(ask_owner(*link, [&](const OwnerLink::Patience& patience) {
    return link->request(static_cast<wire::Op>(op), text, std::move(exchange), patience);
  }));
  return py::make_tuple(py::bytes(brought->payload), std::move(brought->descriptor));
}

// Whether the owner has answered within so many seconds. With None, what is usual; then a time-out raises.
bool ping(Self<OwnerLink> link, std::optional<double> longest_s) {
  const auto longest = longest_s ? seconds(*longest_s) : link->usual_patience();
  Status status = patiently(longest, [&](const OwnerLink::Patience& patience) {
    return link->request(wire::Op::kPing, {}, {[](OwnerLink::Reply&) {}, {}}, patience);
  });
  if (status.ok() && a_handler_raises()) throw py::error_already_set();
  if (longest_s && !status.ok() && status.code() == ErrorCode::kTimedOut) return false;
  throw_if_error(status);
  return true;
}

// A lease that has arrived and belongs to no file yet. It is given back unless one takes it. What is
// needed to map its file may have come along.
class ArrivedLease {
 public:
  ArrivedLease(std::shared_ptr<OwnerLink> link, wire::Pages pages)
      : link_(std::move(link)), pages_(pages) {
    link_->note_loose(pages_);
  }
  ~ArrivedLease() {
    if (taken_) return;
    link_->forget_loose(pages_);
    link_->give_back(pages_.file, pages_.range);
  }
  ArrivedLease(const ArrivedLease&) = delete;
  ArrivedLease& operator=(const ArrivedLease&) = delete;

  uint64_t file() const { return pages_.file; }
  // Without memory for that, the owner is asked.
  void describe_file(std::string_view description, OwnerLink::Reply& reply) try {
    if (reply.descriptor < 0) return;
    description_ = description;
    descriptor_ = std::make_unique<ArrivedDescriptor>(reply.descriptor);
    reply.descriptor = -1;
  } catch (const std::bad_alloc&) {  // NOLINT: see above
  }
  // (description, descriptor), once; else None.
  py::object take_description() {
    if (descriptor_ == nullptr) return py::none();
    py::bytes description(description_);
    return py::make_tuple(std::move(description), std::move(descriptor_));
  }
  // It is the caller's.
  FileRange take() {
    taken_ = true;
    link_->forget_loose(pages_);
    return pages_.range;
  }

 private:
  const std::shared_ptr<OwnerLink> link_;
  const wire::Pages pages_;
  std::string description_;
  std::unique_ptr<ArrivedDescriptor> descriptor_;
  bool taken_ = false;
};

std::unique_ptr<ArrivedLease> claim(Self<OwnerLink> link, const py::bytes& nonce) {
  const auto lease = std::make_shared<std::unique_ptr<ArrivedLease>>();
  const auto shared = link->shared_from_this();
  OwnerLink::Exchange exchange{[lease, shared](OwnerLink::Reply& reply) {
                                 wire::Pages pages;
                                 wire::Reader reader(reply.payload);
                                 if (!reader.read(pages)) return;
                                 *lease = std::make_unique<ArrivedLease>(shared, pages);
                                 (*lease)->describe_file(reader.left(), reply);
                               },
                               [lease] { lease->reset(); }};
  const std::string payload = nonce;
  throw_if_error(ask_owner(*link, [&](const OwnerLink::Patience& patience) {
    return link->request(wire::Op::kClaim, payload, std::move(exchange), patience);
  }));
  if (*lease == nullptr) {
    throw_if_error(Status::error(ErrorCode::kOwnerGone,
                                 "the owner of these pages does not keep to the protocol"));
  }
  return std::move(*lease);
}

// (process, address or None)
py::tuple owner(Self<OwnerLink> link) {
  const OwnerLink::Owner owner = link->owner();
  if (owner.name.empty()) return py::make_tuple(owner.pid, py::none());
  const py::bytes secret(reinterpret_cast<const char*>(owner.secret.data()), owner.secret.size());
  return py::make_tuple(
      owner.pid, py::make_tuple(py::bytes(owner.name), py::bytes(owner.path), secret, owner.uid));
}

void set_owner(Self<OwnerLink> link, pid_t pid, const py::object& address) {
  OwnerLink::Owner owner{.pid = pid};
  if (!address.is_none()) {
    const auto [name, path, secret, uid] =
        address.cast<std::tuple<py::bytes, py::bytes, py::bytes, uint64_t>>();
    owner.name = name;
    owner.path = path;
    const std::string text = secret;
    std::memcpy(owner.secret.data(), text.data(), std::min(owner.secret.size(), text.size()));
    owner.uid = uid;
  }
  link->set_owner(std::move(owner));
}

// (a link, the owner's user). Errors of the kernel's name `filename`.
py::tuple connect_to_owner(const py::bytes& name, const std::string& shown, uint64_t user,
                           double longest_s, const py::object& filename) {
  const std::string socket = name;
  const auto connected = patiently(seconds(longest_s), [&](const OwnerLink::Patience& patience) {
    return Connecting::to(socket, shown, static_cast<uid_t>(user), patience);
  });
  if (!connected.ok() && connected.status().code() == ErrorCode::kSystem) {
    const Status& status = connected.status();
    PyErr_SetObject(
        PyExc_OSError,
        py::make_tuple(status.error_number(), "connect: " + status.describe(), filename).ptr());
    throw py::error_already_set();
  }
  throw_if_error(connected.status());
  if (a_handler_raises()) throw py::error_already_set();
  return py::make_tuple(connected->link, uint64_t{connected->owner});
}

void bind_link(py::module_& module) {
  module.def("connect_to_owner", &connect_to_owner, py::arg("name"), py::arg("shown"),
             py::arg("user"), py::arg("longest_s"), py::arg("filename"));
  (void)py::class_<ArrivedDescriptor>(module, "ArrivedDescriptor");
  py::class_<ArrivedLease>(module, "ArrivedLease")
      .def_property_readonly("file_id", [](Self<ArrivedLease> lease) { return lease->file(); })
      .def("take_description", [](Self<ArrivedLease> lease) { return lease->take_description(); });
  py::class_<OwnerLink, std::shared_ptr<OwnerLink>>(module, "OwnerLink")
      .def(py::init([](int socket) { return value_or_throw(OwnerLink::duplicate(socket)); }),
           py::arg("socket"))
      .def("request", &request)
      .def("claim", &claim)
      .def("ping", &ping, py::arg("longest_s"))
      .def("flush",
           [](Self<OwnerLink> link, const py::object& timeout_s) {
             return wait_interruptibly(timeout_s,
                                       [&](auto deadline) { return link->flush(deadline); });
           })
      .def("set_timeout", [](Self<OwnerLink> link,
                             double longest_s) { link->set_usual_patience(seconds(longest_s)); })
      .def_property_readonly("timeout",
                             [](Self<OwnerLink> link) {
                               return std::chrono::duration<double>(link->usual_patience()).count();
                             })
      .def_property_readonly("awaits_answers",
                             [](Self<OwnerLink> link) { return link->awaits_answers(); })
      .def("give_back", [](Self<OwnerLink> link, uint64_t file,
                           const py::object& range) { link->give_back(file, file_range(range)); })
      .def("break_off", [](Self<OwnerLink> link) { link->break_off(); })
      .def("break_off_when_settled", [](Self<OwnerLink> link) { link->break_off_when_settled(); })
      .def("has_hung_up", [](Self<OwnerLink> link) { return link->has_hung_up(); })
      .def_property_readonly("broken", [](Self<OwnerLink> link) { return link->broken(); })
      .def_property_readonly("number", [](Self<OwnerLink> link) { return link->number(); })
      .def("set_owner", &set_owner, py::arg("pid"), py::arg("address"))
      .def("owner", &owner);
}

// --- Peers ---------------------------------------------------------------------------------------

std::unique_ptr<PeerHandle> make_peer(Self<ArrivedDescriptor> memory, uint64_t id,
                                      uint64_t capacity, bool readonly, Self<OwnerLink> link) {
  auto file = [&] {
    const WithoutGil release;
    return PeerFile::create(memory->fd(), {id, capacity, readonly}, link->shared_from_this());
  }();
  return std::make_unique<PeerHandle>(value_or_throw(std::move(file)));
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

// The file as this process, a peer, has it. A signal handler may fork while the owner is waited for, and
// in the child the handle has another one: what is done after the wait goes through the handle again.
template <class Handle>
std::shared_ptr<PeerFile> local(Self<Handle> handle) {
  PeerFile* const peer = handle->peer();
  if (peer == nullptr) throw_if_error(OrphanedPages::refuse());
  return peer->shared_from_this();
}

template <class Handle>
void give_back(Self<Handle> handle, FileRange range) {
  (void)handle->pages().dec_ref(range);
}

// New pages, as a handle or as a range.
template <class Handle>
py::object allocate(const py::object& file, Self<Handle> handle, uint64_t length, int kind,
                    int direction, uint32_t memcg_id, int mode, int huge, bool as_range) {
  const auto peer = local(handle);
  const AllocateRequest wanted{.length = length,
                               .kind = static_cast<MemoryKind>(kind),
                               .direction = static_cast<Direction>(direction),
                               .memcg_id = memcg_id,
                               .huge = static_cast<HugeWish>(huge)};
  const FileRange range = value_or_throw(ask_owner(
      peer->link(),
      [&](const OwnerLink::Patience& patience) { return peer->allocate(wanted, patience); },
      [&](const Result<FileRange>& pages) { give_back(handle, *pages); }));
  try {
    prepare(*local(handle), range, mode);
    PyObject* const result =
        as_range ? new_file_range(range) : new_allocation(file.ptr(), handle->seat(), range);
    if (result == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
  } catch (...) {
    give_back(handle, range);
    throw;
  }
}

// A lease that has arrived becomes a handle.
template <class Handle>
py::object adopt(const py::object& file, Self<Handle> handle, Self<ArrivedLease> lease) {
  const auto peer = local(handle);
  const FileRange range = lease->take();
  throw_if_error(peer->adopt(range));
  PyObject* const pages = new_allocation(file.ptr(), handle->seat(), range);
  if (pages == nullptr) {
    give_back(handle, range);
    throw py::error_already_set();
  }
  return py::reinterpret_steal<py::object>(pages);
}

// If a signal handler raises meanwhile, nothing stays on offer.
wire::Secret offer(PeerFile& peer, FileRange range) {
  throw_if_error(peer.check_usable());
  const auto secret = std::make_shared<std::optional<wire::Secret>>();
  const auto withdraw = [secret, weak = peer.link().weak_from_this()] {
    const auto link = weak.lock();
    if (*secret && link != nullptr) withdraw_offer(*link, **secret);
  };
  std::string payload;
  wire::append(payload, wire::Pages{peer.identity().id, range});
  OwnerLink::Exchange exchange{[secret](OwnerLink::Reply& reply) {
                                 wire::Secret its{};
                                 if (wire::Reader(reply.payload).read_all(its)) *secret = its;
                               },
                               withdraw};
  Status status = patiently(peer.link().usual_patience(), [&](const OwnerLink::Patience& patience) {
    return peer.link().request(wire::Op::kOffer, payload, std::move(exchange), patience);
  });
  if (status.ok() && a_handler_raises()) {
    withdraw();
    throw py::error_already_set();
  }
  throw_if_error(status);
  if (!*secret) {
    throw_if_error(Status::error(ErrorCode::kOwnerGone,
                                 "the owner of these pages does not keep to the protocol"));
  }
  return **secret;
}

template <class Handle>
void inc_ref(Self<Handle> handle, const py::object& range_object) {
  const FileRange range = file_range(range_object);
  const auto peer = local(handle);
  throw_if_error(ask_owner(peer->link(), [&](const OwnerLink::Patience& patience) {
    return peer->pin_others(range, patience);
  }));
  throw_if_error(local(handle)->inc_ref(range, 0));
}

// What this process does as a peer, for pgalloc.sharing: with a PeerFile, and in a forked child with its
// parent's MemoryFile. Methods that make handles take the file a second time, as the object that it is.
template <class Handle>
void bind_remote_calls(py::class_<Handle>& type) {
  using Patience = OwnerLink::Patience;
  type.def("_remote_allocate",
           [](const py::object& self, uint64_t length, int kind, int direction, uint32_t memcg_id,
              int mode, int huge, bool as_range) {
             return allocate<Handle>(self, self.cast<Self<Handle>>(), length, kind, direction,
                                     memcg_id, mode, huge, as_range);
           })
      .def("_adopt",
           [](const py::object& self, Self<ArrivedLease> lease) {
             return adopt<Handle>(self, self.cast<Self<Handle>>(), lease);
           })
      .def("_remote_decommit",
           [](Self<Handle> handle, const py::object& range_object) {
             const FileRange range = file_range(range_object);
             const auto peer = local(handle);
             throw_if_error(ask_owner(peer->link(), [&](const Patience& patience) {
               return peer->decommit(range, patience);
             }));
           })
      .def("_remote_unique",
           [](Self<Handle> handle, const py::object& range_object) {
             const FileRange range = file_range(range_object);
             const auto peer = local(handle);
             return value_or_throw(ask_owner(peer->link(), [&](const Patience& patience) {
               return peer->has_unique_ref(range, patience);
             }));
           })
      .def("_remote_usage",
           [](Self<Handle> handle, uint32_t memcg_id) {
             const auto peer = local(handle);
             return value_or_throw(ask_owner(peer->link(), [&](const Patience& patience) {
               return peer->usage(memcg_id, patience);
             }));
           })
      .def("_remote_offer",
           [](Self<Handle> handle, const py::object& range_object) {
             const FileRange range = file_range(range_object);
             const auto peer = local(handle);
             const wire::Secret secret = offer(*peer, range);
             return py::bytes(reinterpret_cast<const char*>(secret.data()), secret.size());
           })
      .def_property_readonly(
          "_link", [](Self<Handle> handle) { return local(handle)->shared_link(); },
          "The connection to the owner.");
}

void bind_peer(py::module_& module) {
  py::class_<PeerHandle> type(module, "PeerFile");
  type.def(py::init(&make_peer), py::arg("descriptor"), py::arg("id"), py::arg("capacity"),
           py::arg("readonly"), py::arg("link"))
      .def("inc_ref", &inc_ref<PeerHandle>)
      .def("dec_ref",
           [](Self<PeerHandle> handle, const py::object& range) {
             throw_if_error(handle->pages().dec_ref(file_range(range)));
           })
      .def("_map_range", &map_range)
      .def("_leave", [](Self<PeerHandle> handle) { return handle->leave(); })
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
  bind_remote_calls(type);

  // bind_memory_file() made the class; these are further methods of it.
  auto file_type = py::reinterpret_borrow<py::class_<FileHandle>>(module.attr("MemoryFile"));
  file_type.def("_inc_ref_peer", &inc_ref<FileHandle>).def("_leave", [](Self<FileHandle> handle) {
    return local(handle)->close();
  });
  bind_remote_calls(file_type);
}

}  // namespace

PeerHandle* peer_handle_of(PyObject* object) {
  return is_bound<PeerHandle>(object) ? constructed<PeerHandle>(object) : nullptr;
}

void bind_sharing(py::module_& module) {
  bind_link(module);
  bind_peer(module);
}

}  // namespace pgalloc::binding
