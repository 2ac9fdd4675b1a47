// Purpose: free-standing ledgers, and the account of the process, for Python.
#include <pybind11/stl.h>

#include "binding/bind.h"
#include "binding/errors.h"
#include "binding/self.h"
#include "file/file_registry.h"
#include "pages/ledger.h"

namespace pgalloc::binding {

namespace py = pybind11;

namespace {

// (bytes per kind, {memcg id: bytes per kind})
py::tuple as_tuple(const LedgerSnapshot& snapshot) {
  return py::make_tuple(snapshot.total, snapshot.memcgs);
}

MemoryKind as_kind(unsigned kind) {
  if (kind < kMemoryKinds) return static_cast<MemoryKind>(kind);
  throw_if_error(Status::error(ErrorCode::kOption, "unknown kind"));
  __builtin_unreachable();
}

}  // namespace

void bind_ledger(py::module_& module) {
  py::class_<Ledger>(module, "Ledger")
      .def(py::init<>())
      .def("inc",
           [](Self<Ledger> ledger, uint64_t bytes, unsigned kind, uint32_t memcg_id) {
             throw_if_error(ledger->inc(bytes, as_kind(kind), memcg_id));
           })
      .def("dec",
           [](Self<Ledger> ledger, uint64_t bytes, unsigned kind, uint32_t memcg_id) {
             throw_if_error(ledger->dec(bytes, as_kind(kind), memcg_id));
           })
      .def("move",
           [](Self<Ledger> ledger, uint64_t bytes, unsigned to, unsigned from, uint32_t memcg_id) {
             throw_if_error(ledger->move(bytes, as_kind(to), as_kind(from), memcg_id));
           })
      .def("snapshot", [](Self<Ledger> ledger) { return as_tuple(ledger->snapshot()); });
  module.def("process_ledger", &FileRegistry::booked_by_hand, py::return_value_policy::reference);
  module.def("process_account", [] { return as_tuple(FileRegistry::account()); });
  module.def("total_memory", &total_memory);
}

}  // namespace pgalloc::binding
