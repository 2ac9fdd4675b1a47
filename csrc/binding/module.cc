// The extension module: a list of its rooms.
//
// It is for the main interpreter alone: threads of the core, signal handlers and forks belong to the
// process, and so do the types. Python's PyGILState API, which pybind11 uses before anything else, waits
// for ever in another one.
#include "binding/bind.h"
#include "binding/bound_types.h"
#include "binding/cache_object.h"
#include "binding/errors.h"
#include "binding/file_handle.h"
#include "binding/range_type.h"

namespace py = pybind11;
using namespace pgalloc::binding;  // NOLINT(google-build-using-namespace)

// With an init function of its own, which the one below calls.
PYBIND11_MODULE(_main_core, module) {
  module.doc() = "The native core of pgalloc. Use the names that pgalloc itself exports.";
  if (!load_error_types() || !add_range_types(module.ptr()) || !add_mapping_type(module.ptr()) ||
      !add_allocation_type(module.ptr()) || !add_cache_type(module.ptr())) {
    throw py::error_already_set();
  }
  module.attr("PAGE_SIZE") = pgalloc::page_size();
  module.attr("HUGE_PAGE_SIZE") = pgalloc::huge_page_size();
  module.attr("CHUNK_SIZE") = pgalloc::kChunkSize;
  bind_memory_file(module);
  bind_image(module);
  bind_image_writer(module);
  bind_restore(module);
  bind_ledger(module);
  bind_fork(module);
  bind_discards(module);
  bind_cache(module);
  bind_guard(module);
  bind_sharing(module);
  bind_broker(module);
  bind_testing(module);
  translate_memory_errors();
  if (!harden_bound_types(module.ptr())) throw py::error_already_set();
}

// Python calls it for each interpreter that imports the module (PEP 489).
// NOLINTNEXTLINE(bugprone-reserved-identifier): the interpreter's name for it
PyMODINIT_FUNC PyInit__core() {
  if (PyInterpreterState_Get() == PyInterpreterState_Main()) return PyInit__main_core();
  PyErr_SetString(
      PyExc_ImportError,
      "pgalloc works in the main interpreter of a process only, not in a subinterpreter");
  return nullptr;
}
