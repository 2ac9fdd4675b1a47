// Purpose: MemoryFile for Python, but for the calls in hot_calls.cc.
#include <pybind11/stl.h>

#include <string>

#include "backing/huge_switch.h"
#include "binding/arguments.h"
#include "binding/bind.h"
#include "binding/errors.h"
#include "binding/file_handle.h"
#include "binding/range_type.h"
#include "binding/self.h"

namespace pgalloc::binding {

namespace py = pybind11;

namespace {

FileRange evictable_range(const py::object& object) {
  if (is_evictable_range(object.ptr())) return range_of(object.ptr());
  PyErr_Format(PyExc_TypeError, "range must be an EvictableRange, not %.100s",
               Py_TYPE(object.ptr())->tp_name);
  throw py::error_already_set();
}

// The facade has checked types and values; `backing` is None, a path as bytes, or a descriptor, and `name`
// what errors call it, or None.
std::unique_ptr<FileHandle> create(const py::object& backing, bool duplicate,
                                   std::optional<uint64_t> capacity, int delayed_eviction,
                                   bool use_host_memcg_pressure, bool decommit_on_destroy,
                                   bool manual_zeroing, bool disable_ima_workaround,
                                   std::optional<uint64_t> max_allocatable_bytes, int huge_pages,
                                   bool accounting, std::string label, const py::object& name) {
  Backing core_backing;
  if (py::isinstance<py::bytes>(backing)) {
    core_backing = BackingPath{backing.cast<std::string>()};
  } else if (!backing.is_none()) {
    core_backing = AdoptedDescriptor{backing.cast<int>(), duplicate};
  }
  const MemoryFileOptions options{
      .capacity = capacity,
      .delayed_eviction = static_cast<DelayedEviction>(delayed_eviction),
      .use_host_memcg_pressure = use_host_memcg_pressure,
      .decommit_on_destroy = decommit_on_destroy,
      .manual_zeroing = manual_zeroing,
      .disable_ima_workaround = disable_ima_workaround,
      .max_allocatable_bytes = max_allocatable_bytes,
      .huge_pages = static_cast<HugePages>(huge_pages),
      .accounting = accounting,
      .label = std::move(label),
  };
  auto file = [&] {
    WithoutGil release;
    return MemoryFile::create(core_backing, options);
  }();
  return std::make_unique<FileHandle>(value_or_throw(std::move(file)),
                                      name.is_none() ? nullptr : name.ptr());
}

void decommit(Self<FileHandle> handle, const py::object& range_object) {
  FileRange range;
  if (!as_file_range(range_object.ptr(), &range)) throw py::error_already_set();
  MemoryFile& file = handle->core();
  Status status;
  {
    WithoutGil release;
    status = file.decommit(range);
  }
  throw_if_error(status, "decommit", handle->name());
}

py::object first_shared_range(Self<FileHandle> handle, const py::object& range_object) {
  FileRange range;
  if (!as_file_range(range_object.ptr(), &range)) throw py::error_already_set();
  const auto shared = value_or_throw(handle->core().references().first_shared(range));
  if (!shared) return py::none();
  PyObject* const result = new_file_range(*shared);
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

bool update_usage(Self<FileHandle> handle, const std::optional<std::vector<uint32_t>>& memcg_ids) {
  MemoryFile& file = handle->core();
  auto current = [&] {
    WithoutGil release;
    return file.scanner().update(memcg_ids ? &*memcg_ids : nullptr);
  }();
  throw_if_error(current.status(), "update_usage", handle->name());
  return *current;
}

py::list segments(Self<FileHandle> handle) {
  py::list result;
  for (const auto& segment : handle->core().segments()) {
    result.append(
        py::make_tuple(segment.range.start, segment.range.end, static_cast<int>(segment.use.kind),
                       segment.use.committed ? segment.range.length() : 0, segment.use.refs,
                       segment.use.memcg_id, segment.size == PageSize::kHuge, segment.huge_bytes));
  }
  return result;
}

py::dict stats(Self<FileHandle> handle) {
  const auto stats = handle->ask([](MemoryFile& file) { return file.stats(); });
  py::dict result;
#define PGALLOC_STAT(name) result[#name] = stats.name
  PGALLOC_STAT(allocations);
  PGALLOC_STAT(allocated_bytes);
  PGALLOC_STAT(freed_bytes);
  PGALLOC_STAT(recycled_bytes);
  PGALLOC_STAT(huge_allocations);
  PGALLOC_STAT(huge_fallback_bytes);
  PGALLOC_STAT(punches);
  PGALLOC_STAT(punched_bytes);
  PGALLOC_STAT(decommitted_bytes);
  PGALLOC_STAT(punch_failures);
  result["lost_bytes"] = stats.quarantined_bytes;
  PGALLOC_STAT(discards);
  PGALLOC_STAT(discarded_bytes);
  PGALLOC_STAT(unpinned_bytes);
  PGALLOC_STAT(waiting_bytes);
  PGALLOC_STAT(scans);
  PGALLOC_STAT(voided_results);
#undef PGALLOC_STAT
  return result;
}

void bind_evictables(py::module_& module) {
  // A thread that waits for evictions holds this object, not the file.
  py::class_<Evictables, std::shared_ptr<Evictables>>(module, "Evictables")
      .def("unmark",
           [](Self<Evictables> evictables, uint64_t user, const py::object& range) {
             evictables->unmark(user, evictable_range(range));
           })
      .def("unmark_all",
           [](Self<Evictables> evictables, uint64_t user) { evictables->unmark_all(user); })
      .def("knows",
           [](Self<Evictables> evictables, uint64_t user) { return evictables->knows(user); })
      .def("empty", [](Self<Evictables> evictables) { return evictables->empty(); })
      .def("start_all", [](Self<Evictables> evictables) { evictables->start_all(); })
      .def("wait_for_due_user",
           [](Self<Evictables> evictables) {
             WithoutGil release;
             return evictables->wait_for_due_user();
           })
      .def("next",
           [](Self<Evictables> evictables, uint64_t user) -> py::object {
             const auto range = evictables->next(user);
             if (!range) return py::none();
             PyObject* object = new_evictable_range(*range);
             if (object == nullptr) throw py::error_already_set();
             return py::reinterpret_steal<py::object>(object);
           })
      .def("wait_until_idle",
           [](Self<Evictables> evictables, const py::object& timeout_s) {
             return wait_interruptibly(
                 timeout_s, [&](auto deadline) { return evictables->wait_until_idle(deadline); });
           })
      .def("pause", [](Self<Evictables> evictables) { evictables->pause(); })
      .def("resume", [](Self<Evictables> evictables) { evictables->resume(); });
}

}  // namespace

void bind_memory_file(py::module_& module) {
  module.def("huge_switch", [](const std::string& folder) {
    const HugeSwitch decides = huge_switch_of_shmem(folder);
    return py::make_tuple(decides.path, decides.choice, decides.gives);
  });
  bind_evictables(module);
  py::class_<FileHandle> type(module, "MemoryFile");
  // No names: pybind11 crashes when there is no memory to look one up.
  type.def(py::init(&create))
      .def(
          "decommit", &decommit, py::arg("range"),
          "Give the pages of `range` back to the kernel; they read as zero afterwards. References\n"
          "stay as they are. Raises RangeError unless the whole range is allocated, OSError when\n"
          "the kernel refuses (nothing has changed then).")
      .def("_mark_evictable",
           [](Self<FileHandle> handle, uint64_t user, const py::object& range) {
             throw_if_error(handle->core().mark_evictable(user, evictable_range(range)));
           })
      .def_property_readonly("_evictables",
                             [](Self<FileHandle> handle) { return handle->core().evictables(); })
      .def("_wait_for_reclaim",
           [](Self<FileHandle> handle, const py::object& timeout_s) {
             MemoryFile& file = handle->core();
             return wait_interruptibly(
                 timeout_s, [&](auto deadline) { return file.wait_for_reclaim(deadline); });
           })
      .def("_update_usage", &update_usage)
      .def(
          "total_usage",
          [](Self<FileHandle> handle) {
            const auto bytes = handle->core().total_usage();
            throw_if_error(bytes.status(), "total_usage", handle->name());
            return *bytes;
          },
          "Bytes the backing file occupies, as its file system counts them (st_blocks x 512).")
      .def_property_readonly(
          "total_size", [](Self<FileHandle> handle) { return handle->facts().total_size(); },
          "Size of the backing file in bytes. It grows by chunks.")
      .def_property_readonly(
          "capacity", [](Self<FileHandle> handle) { return handle->facts().capacity(); },
          "No byte at or beyond this offset is ever allocated.")
      .def_property_readonly(
          "should_cache_evictable",
          [](Self<FileHandle> handle) { return handle->facts().should_cache_evictable(); },
          "Whether marking ranges evictable may keep them for long: true with MANUAL eviction or "
          "memory-cgroup pressure.")
      .def("_usage",
           [](Self<FileHandle> handle, const std::optional<uint32_t>& memcg_id) {
             throw_if_error(handle->facts().check_accounting(), "usage", handle->name());
             const Ledger& ledger = handle->facts().ledger();
             return memcg_id ? ledger.memcg(*memcg_id) : ledger.total();
           })
      .def("_huge_usage",
           [](Self<FileHandle> handle) { return value_or_throw(handle->core().huge_usage()); })
      .def("_segments", &segments)
      .def("_stats", &stats)
      .def(
          "first_shared_range", &first_shared_range, py::arg("range"),
          "The first stretch of pages of `range` with more than one reference each, as long as it "
          "goes;\nNone if there is none.\n\nRaises RangeError unless the whole range is allocated, "
          "ForkedError in a forked child.")
      .def("_take_warnings",
           [](Self<FileHandle> handle) {
             return handle->ask([](MemoryFile& file) { return file.take_warnings(); });
           })
      .def("_close",
           [](Self<FileHandle> handle, bool keep_descriptor) {
             throw_if_error(handle->close(keep_descriptor), "close", handle->name());
           })
      .def_property_readonly(
          "closed", [](Self<FileHandle> handle) { return handle->closed(); },
          "Whether close() was called.")
      .def_property_readonly(
          "accounting",
          [](Self<FileHandle> handle) { return handle->facts().options().accounting; },
          "Whether what is committed is found out and booked: the option of that name.")
      .def_property_readonly("_id", [](Self<FileHandle> handle) { return handle->facts().id(); })
      .def_property_readonly(
          "_is_peer", [](Self<FileHandle> handle) { return handle->peer() != nullptr; },
          "Whether this is a forked child that has leases of its own.")
      .def_property_readonly("_forked",
                             [](Self<FileHandle> handle) { return handle->owned() == nullptr; })
      .def_property_readonly("_delayed_eviction",
                             [](Self<FileHandle> handle) {
                               return static_cast<int>(handle->facts().options().delayed_eviction);
                             })
      .def_property_readonly(
          "_uses_memcg_pressure",
          [](Self<FileHandle> handle) { return handle->facts().options().use_host_memcg_pressure; })
      .def_property_readonly("_fd", [](Self<FileHandle> handle) { return handle->facts().fd(); });
  if (!add_hot_calls(type.ptr())) throw py::error_already_set();
}

}  // namespace pgalloc::binding
