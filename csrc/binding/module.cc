// The extension module: a list of its rooms.
#include "binding/bind.h"
#include "binding/errors.h"
#include "binding/file_handle.h"
#include "binding/range_type.h"

namespace py = pybind11;
using namespace pgalloc::binding;  // NOLINT(google-build-using-namespace)

PYBIND11_MODULE(_core, module) {
  module.doc() = "The native core of pgalloc. Use the names that pgalloc itself exports.";
  if (!load_error_types() || !add_range_types(module.ptr()) || !add_mapping_type(module.ptr()) ||
      !add_part_type(module.ptr()) || !add_allocation_type(module.ptr())) {
    throw py::error_already_set();
  }
  module.attr("PAGE_SIZE") = pgalloc::page_size();
  module.attr("HUGE_PAGE_SIZE") = pgalloc::kHugePageSize;
  module.attr("CHUNK_SIZE") = pgalloc::kChunkSize;
  bind_memory_file(module);
  bind_image(module);
  bind_image_writer(module);
  bind_restore(module);
  bind_ledger(module);
  bind_fork(module);
  bind_discards(module);
  bind_guard(module);
  bind_sharing(module);
  bind_broker(module);
  bind_testing(module);
}
