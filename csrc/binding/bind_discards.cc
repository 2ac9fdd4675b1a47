// Purpose: discardable memory for pgalloc.cache: a queue with a policy, and a time without discards.
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "binding/bind.h"
#include "binding/file_handle.h"
#include "binding/self.h"

namespace pgalloc::binding {

namespace py = pybind11;

namespace {

// A queue of its own within a file's unpinned memory.
struct QueueHandle {
  std::shared_ptr<FileSeat> seat;
  std::shared_ptr<DiscardQueue> queue;
};

DiscardPolicy policy_of(std::string_view name) {
  const auto found = std::find(kDiscardPolicyNames.begin(), kDiscardPolicyNames.end(), name);
  if (found == kDiscardPolicyNames.end()) {
    throw_if_error(Status::error(ErrorCode::kOption, "unknown policy"));
  }
  return static_cast<DiscardPolicy>(found - kDiscardPolicyNames.begin());
}

std::unique_ptr<QueueHandle> make_queue(const py::object& memory_file, std::string_view policy) {
  const FileHandle* handle = handle_of(memory_file.ptr());
  if (handle == nullptr) throw py::error_already_set();
  auto queue = handle->core().discarder().add_queue(policy_of(policy));
  return std::make_unique<QueueHandle>(QueueHandle{handle->seat(), std::move(queue)});
}

// Nothing of a file is discarded while this lives: whatever interrupts its owner.
class HeldDiscards {
 public:
  explicit HeldDiscards(const FileHandle& handle) : seat_(handle.seat()) {
    MemoryFile& file = handle.core();
    WithoutGil release;
    file.discarder().hold();
  }
  ~HeldDiscards() { release(); }
  HeldDiscards(const HeldDiscards&) = delete;
  HeldDiscards& operator=(const HeldDiscards&) = delete;

  void release() {
    MemoryFile* const file = seat_ == nullptr ? nullptr : seat_->owned();
    if (file != nullptr) file->discarder().resume();
    WithoutGil release;  // it may be the file's last owner
    seat_.reset();
  }

 private:
  std::shared_ptr<FileSeat> seat_;
};

}  // namespace

std::shared_ptr<DiscardQueue> queue_of(PyObject* object) {
  if (!is_bound<QueueHandle>(object)) {
    PyErr_Format(PyExc_TypeError, "expected a DiscardQueue, not %.100s", Py_TYPE(object)->tp_name);
    return nullptr;
  }
  const QueueHandle* handle = constructed<QueueHandle>(object);
  if (handle == nullptr) {
    PyErr_SetString(PyExc_TypeError, "DiscardQueue.__init__ has not run");
    return nullptr;
  }
  return handle->queue;
}

void bind_discards(py::module_& module) {
  py::class_<HeldDiscards>(module, "HeldDiscards")
      .def(py::init([](const py::object& memory_file) {
             const FileHandle* handle = handle_of(memory_file.ptr());
             if (handle == nullptr) throw py::error_already_set();
             return std::make_unique<HeldDiscards>(*handle);
           }),
           py::arg("memory_file"))
      .def("release", [](Self<HeldDiscards> self) { self->release(); });

  py::class_<QueueHandle>(module, "DiscardQueue")
      .def(py::init(&make_queue), py::arg("memory_file"), py::arg("policy"))
      .def_property_readonly("discards",
                             [](Self<QueueHandle> self) { return self->queue->discards(); })
      .def_property_readonly("hits", [](Self<QueueHandle> self) { return self->queue->hits(); })
      .def("take_discarded",
           [](Self<QueueHandle> self) {
             MemoryFile* const file = self->seat->owned();
             return file == nullptr ? std::vector<uint64_t>()
                                    : file->discarder().take_discarded_ids(*self->queue);
           })
      .def("take_victims", [](Self<QueueHandle> self, uint64_t nbytes) {
        MemoryFile* const file = self->seat->owned();
        return file == nullptr ? std::vector<uint64_t>()
                               : file->discarder().take_victims(*self->queue, nbytes);
      });
}

}  // namespace pgalloc::binding
