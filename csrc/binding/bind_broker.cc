// Purpose: the broker, which answers the peers of this process, for pgalloc.sharing.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "binding/allocation_object.h"
#include "binding/arguments.h"
#include "binding/bind.h"
#include "binding/cache_object.h"
#include "binding/errors.h"
#include "binding/file_handle.h"
#include "binding/range_type.h"
#include "binding/self.h"
#include "binding/withdraw.h"
#include "sharing/broker.h"
#include "sharing/plant.h"
#include "sharing/server.h"

namespace pgalloc::binding {

namespace py = pybind11;

namespace {

FileRange file_range(const py::object& object) {
  FileRange range;
  if (!as_file_range(object.ptr(), &range)) throw py::error_already_set();
  return range;
}

std::shared_ptr<MemoryFile> memory_file(const py::object& object) {
  const FileHandle* const handle = handle_of(object.ptr());
  if (handle == nullptr) throw py::error_already_set();
  return handle->shared();
}

py::bytes as_bytes(const wire::Secret& secret) {
  return {reinterpret_cast<const char*>(secret.data()), secret.size()};
}

// What is no secret is one that no offer has.
wire::Secret as_secret(const py::bytes& bytes) {
  const std::string text = bytes;
  wire::Secret secret{};
  std::memcpy(secret.data(), text.data(), std::min(secret.size(), text.size()));
  return secret;
}

// Calls the broker without the GIL: its lock may be held for a millisecond.
template <class Call>
auto without_gil(Call call) {
  WithoutGil release;
  return call(Broker::instance());
}

py::tuple address() {
  const auto address = value_or_throw(without_gil([](Broker& broker) { return broker.address(); }));
  return py::make_tuple(py::bytes(address.name), py::bytes(address.path), as_bytes(address.secret),
                        static_cast<uint64_t>(::geteuid()));
}

py::bytes offer(const py::object& file_object, const py::object& range_object) {
  const FileRange range = file_range(range_object);
  auto file = memory_file(file_object);
  return as_bytes(value_or_throw(without_gil([&](Broker& broker) {
    auto secret = broker.offer(file, range);
    file.reset();  // it may be the last one
    return secret;
  })));
}

// A handle on the pages of an offer of this file: there is no moment at which only Python code that a
// signal handler may interrupt has their references.
py::object claim(const py::object& file_object, const py::bytes& nonce) {
  auto file = memory_file(file_object);
  const wire::Secret secret = as_secret(nonce);
  const FileRange range = value_or_throw(without_gil([&](Broker& broker) -> Result<FileRange> {
    Result<Offer> offer = broker.claim(secret);
    if (!offer.ok()) return std::move(offer).status();
    return offer->range;
  }));
  PyObject* const pages = new_allocation(file_object.ptr(), seat_of(file_object.ptr()), range);
  if (pages == nullptr) {
    (void)file->dec_ref(range);
    throw py::error_already_set();
  }
  return py::reinterpret_steal<py::object>(pages);
}

// What this process has offered, each as a list of one (the link to the owner, or None for this process;
// the nonce), or of none, is offered no longer, unless it was claimed. Waits for no owner. One call: no
// signal handler that raises comes in between.
using Made = std::vector<std::tuple<std::shared_ptr<OwnerLink>, py::bytes>>;
void withdraw(const std::vector<Made>& offers) {
  std::vector<std::pair<std::shared_ptr<OwnerLink>, wire::Secret>> all;
  all.reserve(offers.size());
  for (const Made& made : offers) {
    for (const auto& [link, nonce] : made) all.emplace_back(link, as_secret(nonce));
  }
  WithoutGil release;
  for (const auto& [link, secret] : all) {
    if (link != nullptr) {
      withdraw_offer(*link, secret);
    } else if (const Result<Offer> offer = Broker::instance().claim(secret); offer.ok()) {
      (void)offer->file->dec_ref(offer->range);
    }
  }
}

// Far from overflow.
std::chrono::nanoseconds at_most_30_years(double seconds) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
      std::chrono::duration<double>(std::clamp(seconds, 0.0, 1e9)));
}

uint64_t drop_unclaimed(uint64_t file, double seconds) {
  const auto age = at_most_30_years(seconds);
  return without_gil([&](Broker& broker) { return broker.drop_unclaimed(file, age); });
}

py::list leases(uint64_t file) {
  py::list result;
  for (const auto& lease : without_gil([&](Broker& broker) { return broker.leases(file); })) {
    result.append(
        py::make_tuple(lease.pid, lease.uid, lease.bytes, lease.since_epoch, lease.claimed));
  }
  return result;
}

// False if `seconds` have passed first.
bool await_claims(double seconds) {
  return without_gil([&](Broker& broker) {
    return broker.await_claims(std::chrono::steady_clock::now() + at_most_30_years(seconds));
  });
}

// An error of a server names its path.
[[noreturn]] void throw_named(const Status& status, const py::bytes& path) {
  if (status.code() != ErrorCode::kSystem) throw_if_error(status);
  PyErr_SetObject(PyExc_OSError,
                  py::make_tuple(status.error_number(), "serve: " + status.describe(),
                                 py::reinterpret_steal<py::object>(
                                     PyUnicode_DecodeFSDefault(std::string(path).c_str())))
                      .ptr());
  throw py::error_already_set();
}

std::unique_ptr<Server> serve(const py::bytes& path, const py::object& file, bool readonly,
                              const py::object& cache, const PeerLimits& limits) {
  Scope scope{memory_file(file), readonly, nullptr, limits};
  if (!cache.is_none()) {
    scope.cache = own_store_of(cache.ptr());
    if (scope.cache == nullptr) throw py::error_already_set();
  }
  const std::string place = path;
  auto server = [&] {
    WithoutGil release;
    return Server::create(place, std::move(scope));
  }();
  if (!server.ok()) throw_named(server.status(), path);
  return std::move(*server);
}

py::dict figures() {
  const auto figures = without_gil([](Broker& broker) { return broker.figures(); });
  py::dict result;
  result["channels"] = figures.channels;
  result["listeners"] = figures.listeners;
  result["offers"] = figures.offers;
  result["sessions_without_channel"] = figures.sessions_without_channel;
  return result;
}

// --- For tests -----------------------------------------------------------------------------------

std::chrono::nanoseconds from_seconds(double seconds) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
      std::chrono::duration<double>(seconds));
}

void bind_tests(py::module_& module) {
  module.def(
      "broker_set_times",
      [](double greeting_s, double after_sender_s, double look_s, double accept_s) {
        without_gil([&](Broker& broker) {
          broker.set_times({from_seconds(greeting_s), from_seconds(after_sender_s),
                            from_seconds(look_s), from_seconds(accept_s)});
        });
      },
      py::arg("greeting_s") = 10.0, py::arg("after_sender_s") = 600.0, py::arg("look_s") = 1.0,
      py::arg("accept_s") = 0.1);
  module.def("broker_set_own_peers_end",
             [](bool end) { without_gil([&](Broker& broker) { broker.set_own_peers_end(end); }); });
  module.def("broker_descriptors",
             [] { return without_gil([](Broker& broker) { return broker.descriptors(); }); });
  module.def("broker_verify",
             [] { return without_gil([](Broker& broker) { return broker.verify(); }); });
  module.def("broker_plant", [](const std::string& bug) {
    planted = bug == "lost"    ? Plant::kLost
              : bug == "early" ? Plant::kEarly
              : bug == "fork"  ? Plant::kFork
                               : Plant::kNone;
  });
}

void bind_servers(py::module_& module) {
  py::class_<Server>(module, "Server")
      .def(py::init(&serve), py::arg("path"), py::arg("file"), py::arg("readonly"),
           py::arg("cache"), py::arg("limits"))
      // Native: a signal handler that raises finds no moment before they have begun.
      .def(
          "close",
          [](Self<Server> server) {
            WithoutGil release;
            server->close();
          },
          "Accept no more peers, and remove the socket.")
      .def("__exit__",
           [](Self<Server> server, const py::args&) {
             WithoutGil release;
             server->close();
           })
      .def_property_readonly(
          "closed", [](Self<Server> server) { return server->closed(); }, "Whether it was closed.");
}

}  // namespace

void bind_broker(py::module_& module) {
  bind_servers(module);
  py::class_<PeerLimits>(module, "PeerLimits")
      .def(py::init([](std::optional<uint64_t> bytes, std::optional<uint64_t> unclaimed,
                       uint32_t requests, uint32_t children, uint64_t unpinned) {
        return PeerLimits{.bytes = bytes,
                          .unclaimed = unclaimed,
                          .requests = requests,
                          .children = children,
                          .unpinned = unpinned};
      }));  // no names: pybind11 crashes when there is no memory to look one up
  module.def("broker_address", &address);
  module.def("broker_offer", &offer, py::arg("file"), py::arg("range"));
  module.def("broker_is_own", [](const py::bytes& secret) {
    return without_gil(
        [secret = as_secret(secret)](Broker& broker) { return broker.is_own(secret); });
  });
  module.def("broker_offered_file", [](const py::bytes& nonce) {
    return without_gil(
        [secret = as_secret(nonce)](Broker& broker) { return broker.offered_file(secret); });
  });
  module.def("broker_claim", &claim, py::arg("file"), py::arg("nonce"));
  module.def("withdraw_offers", &withdraw, py::arg("offers"));
  module.def("broker_drop_unclaimed", &drop_unclaimed, py::arg("file_id"), py::arg("seconds"));
  module.def("broker_leases", &leases, py::arg("file_id"));
  module.def("broker_await_claims", &await_claims, py::arg("seconds"));
  module.def("broker_figures", &figures);
  bind_tests(module);
}

}  // namespace pgalloc::binding
