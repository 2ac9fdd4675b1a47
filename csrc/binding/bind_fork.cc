// Purpose: getting background threads out of the way of os.fork(), for Python's fork hooks.
#include "binding/bind.h"
#include "file/file_registry.h"
#include "os/thread.h"
#include "sharing/broker.h"

namespace pgalloc::binding {

namespace py = pybind11;

namespace {

void park_threads() {
  Broker::instance().park();
  FileRegistry::park_threads();
}

void resume_threads() {
  FileRegistry::resume_threads();
  Broker::instance().resume();
}

}  // namespace

void bind_fork(py::module_& module) {
  module.def("park_threads", &park_threads, py::call_guard<WithoutGil>());
  module.def("resume_threads", &resume_threads, py::call_guard<WithoutGil>());
  module.def("wait_until_thread_is_gone", &os::wait_until_gone, py::call_guard<WithoutGil>());
}

}  // namespace pgalloc::binding
