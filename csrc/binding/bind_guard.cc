// Purpose: the guard of the memory limits, for pgalloc.pressure and for what commits memory.
#include <pybind11/stl.h>

#include <string>
#include <utility>

#include "binding/bind.h"
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

}  // namespace

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
}

}  // namespace pgalloc::binding
