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

bool follow(const std::string& proc, const std::string& root) {
  WithoutGil release;
  return Guard::instance().follow({proc, root});
}

// Names of files may be any bytes.
py::object name(const std::string& bytes) {
  return py::reinterpret_steal<py::object>(
      PyUnicode_DecodeFSDefaultAndSize(bytes.data(), static_cast<Py_ssize_t>(bytes.size())));
}

py::object amount(uint64_t bytes) {
  return bytes == UINT64_MAX ? py::object(py::none()) : py::cast(bytes);
}

py::dict described(const LevelFiles& files, const MemoryLevel::Reading& reading) {
  static constexpr const char* kKinds[] = {"v1", "v2", "above", "machine"};
  py::dict found;  // item by item: py::arg() turns a MemoryError into a RuntimeError
  found["kind"] = kKinds[static_cast<size_t>(files.kind)];
  found["directory"] = name(files.path);
  found["limit"] = amount(reading.limit);
  found["usage"] = reading.usage;
  found["reclaimable"] = reading.reclaimable;
  found["kernel"] = reading.kernel;
  found["swap_room"] = amount(reading.swap_room);
  found["available"] = reading.limited() ? py::cast(reading.available()) : py::none();
  return found;
}

py::object find_group(const std::string& proc, const std::string& root) {
  const std::optional<MemoryGroup> group = [&] {
    WithoutGil release;
    return find_memory_group({proc, root});
  }();
  if (!group) return py::none();
  return py::make_tuple(group->is_v1 ? "v1" : "v2", name(group->path), name(group->directory),
                        name(group->mount_point), group->exact);
}

py::list look_at_limits(const std::string& proc, const std::string& root) {
  std::vector<std::pair<LevelFiles, MemoryLevel::Reading>> found;
  {
    WithoutGil release;
    found = Limits::look_around({proc, root});
  }
  py::list levels;
  for (const auto& [files, reading] : found) levels.append(described(files, reading));
  return levels;
}

py::dict status() {
  static constexpr const char* kAlarms[] = {"none", "low", "medium", "critical"};
  const Guard::GuardStatus status = [] {
    WithoutGil release;
    return Guard::instance().status();
  }();
  py::list levels;
  for (const Guard::LevelStatus& level : status.levels) {
    py::dict entry = described(level.files, level.reading);
    entry["headroom"] = level.headroom;
    levels.append(entry);
  }
  py::dict found;
  found["running"] = status.running;
  found["level"] = kAlarms[static_cast<size_t>(status.alarm)];
  found["available"] = status.available;
  found["looks"] = status.samples;
  found["crossings"] = status.crossings;
  found["shortfalls"] = status.shortfalls;
  found["discards"] = status.discards;
  found["discarded_bytes"] = status.discarded_bytes;
  found["refusals"] = status.refusals;
  found["levels"] = levels;
  return found;
}

}  // namespace

void bind_guard(py::module_& module) {
  module.def("guard_configure", &configure, py::arg("levels"), py::arg("meminfo"));
  module.def("guard_follow", &follow, py::arg("proc"), py::arg("root"));
  module.def("find_memory_group", &find_group, py::arg("proc"), py::arg("root"));
  module.def("look_at_limits", &look_at_limits, py::arg("proc"), py::arg("root"));
  module.def(
      "guard_add_headroom",
      [](double fraction, uint64_t nbytes) {
        py::gil_scoped_release release;
        return Guard::instance().add_headroom({fraction, nbytes});
      },
      py::arg("fraction"), py::arg("nbytes"));
  module.def("guard_remove_headroom",
             [](uint64_t token) { Guard::instance().remove_headroom(token); });
  module.def(
      "guard_set_headroom",
      [](std::optional<std::pair<double, uint64_t>> wish) {
        py::gil_scoped_release release;
        std::optional<Headroom> headroom;
        if (wish) headroom = Headroom{wish->first, wish->second};
        Guard::instance().set_headroom(headroom);
      },
      py::arg("headroom"));
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
      .def("settle", [](Self<CommitReservation> self, uint64_t nbytes) { self->settle(nbytes); })
      .def("end", [](Self<CommitReservation> self) { self->end(); });
}

}  // namespace pgalloc::binding
