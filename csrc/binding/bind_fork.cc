// Purpose: what forks need of Python, for pgalloc.fork and pgalloc.sharing.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "base/process_generation.h"
#include "binding/bind.h"
#include "binding/fork_hooks.h"
#include "os/thread.h"
#include "sharing/connecting.h"
#include "sharing/forks.h"

namespace pgalloc::binding {

namespace py = pybind11;

void bind_fork(py::module_& module) {
  Connecting::install();
  Forks::install();
  module.def(
      "set_fork_hooks",
      [](const py::function& park, const py::function& resume, const py::function& begin_child,
         const py::function& start_thread) {
        if (!set_fork_hooks(park.ptr(), resume.ptr(), begin_child.ptr(), start_thread.ptr())) {
          throw py::error_already_set();
        }
      },
      py::arg("park"), py::arg("resume"), py::arg("begin_child"), py::arg("start_thread"));
  module.def("before_fork", &before_fork);
  module.def("after_fork_in_parent", &after_fork_in_parent);
  module.def("after_fork_in_child", &after_fork_in_child);
  module.def("process_generation", &process_generation);
  module.def("take_born_links", &Forks::take_born_links, py::call_guard<WithoutGil>());
  module.def("thread_id", &os::thread_id);
  module.def("is_thread_gone", &os::is_gone);
  module.def("wait_until_thread_is_gone", &os::wait_until_gone, py::call_guard<WithoutGil>());
}

}  // namespace pgalloc::binding
