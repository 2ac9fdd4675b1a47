// Purpose: the guard of the memory limits, for pgalloc.pressure; and the queues of caches.
#include <pybind11/stl.h>

#include <string>
#include <utility>

#include "binding/bind.h"
#include "binding/file_handle.h"
#include "binding/self.h"
#include "guard/guard.h"

namespace pgalloc::binding {

namespace py = pybind11;

namespace {

void configure(const std::vector<std::pair<std::string, bool>>& directories,
               const std::optional<std::string>& meminfo) {
  std::vector<LevelFiles> levels;
  levels.reserve(directories.size() + 1);
  for (const auto& [directory, is_v1] : directories) {
    levels.push_back({is_v1 ? LevelFiles::Kind::kV1 : LevelFiles::Kind::kV2, directory});
  }
  if (meminfo) levels.push_back({LevelFiles::Kind::kMachine, *meminfo});
  WithoutGil release;
  Guard::instance().configure(levels);
}

py::dict status() {
  static constexpr const char* kAlarms[] = {"none", "low", "medium", "critical"};
  const Guard::GuardStatus status = [] {
    WithoutGil release;
    return Guard::instance().status();
  }();
  py::list levels;
  for (const Guard::LevelStatus& level : status.levels) {
    const MemoryLevel::Reading& reading = level.reading;
    levels.append(py::dict(
        py::arg("directory") = level.files.path,
        py::arg("limit") = reading.limited() ? py::cast(reading.limit) : py::none(),
        py::arg("usage") = reading.usage, py::arg("reclaimable") = reading.reclaimable,
        py::arg("available") = reading.limited() ? py::cast(reading.available()) : py::none(),
        py::arg("headroom") = level.headroom));
  }
  return py::dict(py::arg("running") = status.running,
                  py::arg("level") = kAlarms[static_cast<size_t>(status.alarm)],
                  py::arg("available") = status.available, py::arg("looks") = status.samples,
                  py::arg("crossings") = status.crossings,
                  py::arg("shortfalls") = status.shortfalls, py::arg("discards") = status.discards,
                  py::arg("discarded_bytes") = status.discarded_bytes,
                  py::arg("refusals") = status.refusals, py::arg("levels") = levels);
}

// A queue of its own within a file's unpinned memory.
struct QueueHandle {
  std::shared_ptr<FileSeat> seat;
  std::shared_ptr<DiscardQueue> queue;
};

std::unique_ptr<QueueHandle> make_queue(const py::object& memory_file, int policy) {
  const FileHandle* handle = handle_of(memory_file.ptr());
  if (handle == nullptr) throw py::error_already_set();
  if (policy < 0 || policy > static_cast<int>(DiscardPolicy::kS3Fifo)) {
    throw_if_error(Status::error(ErrorCode::kOption, "unknown policy"));
  }
  auto queue = handle->core().discarder().add_queue(static_cast<DiscardPolicy>(policy));
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
  if (!py::isinstance<QueueHandle>(object)) {
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

void bind_guard(py::module_& module) {
  module.def("guard_configure", &configure, py::arg("levels"), py::arg("meminfo"));
  module.def(
      "guard_add_headroom",
      [](double fraction, uint64_t nbytes) {
        py::gil_scoped_release release;
        return Guard::instance().add_headroom({fraction, nbytes});
      },
      py::arg("fraction"), py::arg("nbytes"));
  module.def("guard_remove_headroom",
             [](uint64_t token) { Guard::instance().remove_headroom(token); });
  module.def("guard_watch", [](int fd) { Guard::instance().watch(fd); });
  module.def("guard_unwatch", [](int fd) { Guard::instance().unwatch(fd); });
  module.def("guard_status", &status);
  module.def("guard_step", [] {
    WithoutGil release;
    return Guard::instance().step().count();
  });
  module.def("guard_park", [] { Guard::instance().park(); }, py::call_guard<WithoutGil>());
  module.def("guard_resume", [] { Guard::instance().resume(); }, py::call_guard<WithoutGil>());
  py::class_<CommitReservation>(module, "CommitReservation")
      .def(py::init([](uint64_t nbytes) {
             auto reservation = std::make_unique<CommitReservation>();
             Status status;
             {
               WithoutGil release;
               status = commit_gate().reserve(nbytes, *reservation);
             }
             throw_if_error(status);
             return reservation;
           }),
           py::arg("nbytes"))
      .def("end", [](Self<CommitReservation> self) { self->end(); });

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
