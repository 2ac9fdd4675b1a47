// Purpose: what pgalloc.testing stands on: the segment set, the pure search, faults, the clock, and
// hooks into one file's reclaimer.
#include <pybind11/stl.h>

#include <string>

#include "backing/commit_probe.h"
#include "backing/prefault.h"
#include "binding/bind.h"
#include "binding/errors.h"
#include "binding/file_handle.h"
#include "binding/range_type.h"
#include "binding/self.h"
#include "file/file_registry.h"
#include "guard/guard.h"
#include "os/fault_plan.h"
#include "pages/placement.h"

namespace pgalloc::binding {

namespace py = pybind11;

namespace {

// Values for the set that users see: neighbours with equal integers merge.
struct IntegerTraits {
  using Value = int64_t;
  static constexpr bool kTrackGaps = true;
  static constexpr uint64_t kGapAlignment = kUsualHugePageSize;
  static bool merge(Value& left, const Value& right) { return left == right; }
  static Value split(Value& value, FileRange, uint64_t) { return value; }
};
using IntegerSet = segment::SegmentSet<IntegerTraits>;

[[noreturn]] void throw_range_error(const char* text) {
  PyErr_SetString(error_type(ErrorCode::kRange), text);
  throw py::error_already_set();
}

FileRange checked_range(uint64_t start, uint64_t end) {
  if (start >= end) throw_range_error("the range is empty or malformed");
  return {start, end};
}

py::object range_object(FileRange range) {
  PyObject* object = new_file_range(range);
  if (object == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

template <class Iterator>
py::object segment_or_none(Iterator segment) {
  if (!segment.ok()) return py::none();
  return py::make_tuple(segment.start(), segment.end(), segment.value());
}

template <class Gap>
py::object gap_or_none(Gap gap) {
  return gap.ok() ? py::object(py::make_tuple(gap.start(), gap.end())) : py::none();
}

void check_gap_request(uint64_t length, uint64_t alignment) {
  if (length == 0) throw_range_error("length must be positive");
  if (alignment == 0 || (alignment & (alignment - 1)) != 0) {
    throw_range_error("alignment must be a power of two");
  }
}

void bind_segment_set(py::module_& module) {
  using Set = IntegerSet;
  py::class_<Set>(module, "SegmentSet",
                  "An ordered map from disjoint ranges of 64-bit keys to integers.\n\n"
                  "Touching segments with equal values merge. Ranges that are empty, malformed or\n"
                  "overlap a segment are a RangeError.")
      .def(py::init<>())
      .def("__len__", [](Self<Set> set) { return set->size(); })
      .def("span", [](Self<Set> set) { return set->span(); })
      .def(
          "insert",
          [](Self<Set> set, uint64_t start, uint64_t end, int64_t value, bool merge) {
            const FileRange range = checked_range(start, end);
            if (!set->is_empty_range(range)) throw_range_error("the range overlaps a segment");
            if (merge) {
              set->insert(range, value);
            } else {
              set->insert_without_merging(range, value);
            }
          },
          py::arg("start"), py::arg("end"), py::arg("value"), py::arg("merge") = true)
      .def("remove", [](Self<Set> set, uint64_t start,
                        uint64_t end) { set->remove_range(checked_range(start, end)); })
      .def("clear", [](Self<Set> set) { set->clear(); })
      .def("add",
           [](Self<Set> set, uint64_t start, uint64_t end, int64_t amount) {
             set->mutate_range(checked_range(start, end),
                               [&](FileRange, int64_t& value) { value += amount; });
           })
      .def("split",
           [](Self<Set> set, uint64_t key) {
             const auto segment = set->find(key);
             if (segment.ok() && segment.start() < key) set->split(segment, key);
           })
      .def("merge_all", [](Self<Set> set) { set->merge_all(); })
      .def("find", [](Self<Set> set, uint64_t key) { return segment_or_none(set->find(key)); })
      .def("lower_bound",
           [](Self<Set> set, uint64_t key) {
             return segment_or_none(set->lower_bound_segment(key));
           })
      .def("upper_bound",
           [](Self<Set> set, uint64_t key) {
             return segment_or_none(set->upper_bound_segment(key));
           })
      .def("find_gap", [](Self<Set> set, uint64_t key) { return gap_or_none(set->find_gap(key)); })
      .def(
          "first_large_enough_gap",
          [](Self<Set> set, uint64_t length, uint64_t alignment) {
            check_gap_request(length, alignment);
            return gap_or_none(set->first_large_enough_gap(length, alignment));
          },
          py::arg("length"), py::arg("alignment") = 1)
      .def(
          "last_large_enough_gap",
          [](Self<Set> set, uint64_t length, uint64_t alignment) {
            check_gap_request(length, alignment);
            return gap_or_none(set->last_large_enough_gap(length, alignment));
          },
          py::arg("length"), py::arg("alignment") = 1)
      .def(
          "next_large_enough_gap",
          [](Self<Set> set, uint64_t key, uint64_t length, uint64_t alignment) {
            check_gap_request(length, alignment);
            return gap_or_none(set->lower_bound_large_enough_gap(key, length, alignment));
          },
          py::arg("key"), py::arg("length"), py::arg("alignment") = 1)
      .def(
          "prev_large_enough_gap",
          [](Self<Set> set, uint64_t key, uint64_t length, uint64_t alignment) {
            check_gap_request(length, alignment);
            return gap_or_none(set->upper_bound_large_enough_gap(key, length, alignment));
          },
          py::arg("key"), py::arg("length"), py::arg("alignment") = 1)
      .def("segments",
           [](Self<Set> set) {
             py::list result;
             for (auto s = set->first(); s.ok(); s = s.next()) result.append(segment_or_none(s));
             return result;
           })
      .def("gaps",
           [](Self<Set> set) {
             py::list result;
             for (auto g = set->first_gap(); g.ok(); g = g.next()) result.append(gap_or_none(g));
             return result;
           })
      .def("verify", [](Self<Set> set) { return set->verify(); })
      .def("memory_bytes", [](Self<Set> set) { return set->memory_bytes(); });
}

using ListedSegment = std::tuple<uint64_t, uint64_t, uint32_t>;  // start, end, references

py::object find_available_range(const std::vector<ListedSegment>& segments, uint64_t file_size,
                                uint64_t length, uint64_t alignment, unsigned direction) {
  check_gap_request(length, alignment);
  if (file_size > kMaxOffset) throw_range_error("file_size must be below 2^63");
  UsageSet usage;
  for (const auto& [start, end, refs] : segments) {
    const FileRange range = checked_range(start, end);
    if (end > kMaxOffset) throw_range_error("a segment reaches beyond 2^63-1");
    const PageUse use{refs, 0, refs == 0 ? MemoryKind::kSystem : MemoryKind::kAnonymous, false};
    if (!usage.try_insert(range, use)) throw_range_error("segments overlap");
  }
  const auto place = find_place(usage, {.length = length,
                                        .alignment = alignment,
                                        .direction = static_cast<Direction>(direction),
                                        .file_size = file_size,
                                        .capacity = kMaxOffset});
  return place ? range_object(place->range) : py::none();
}

void bind_faults(py::module_& module) {
  module.def("syscall_names", [] {
    py::list names;
    for (const std::string_view name : os::syscall_names()) names.append(std::string(name));
    return names;
  });
  module.def("install_fault", [](const std::string& name, int error_number, uint64_t first,
                                 uint64_t times, bool kill) {
    return os::install_fault(
        {.name = name, .error_number = error_number, .kill = kill, .first = first, .times = times});
  });
  module.def("install_hold", [](const std::string& name, uint64_t number) {
    return os::install_fault({.name = name, .hold = true, .first = number});
  });
  module.def("hold_reached", &os::hold_reached);
  module.def("hold_expired", &os::hold_expired);
  module.def("let_go", &os::let_go);
  module.def("remove_fault", &os::remove_fault);
  module.def("fault_calls", &os::fault_calls);
  module.def("fault_failures", &os::fault_failures);
}

void bind_file_hooks(py::module_& module) {
  module.def("verify", [](Self<FileHandle> handle) { return handle->core().verify(); });
  module.def("pause_reclaimer", [](Self<FileHandle> handle) {
    Reclaimer& reclaimer = handle->core().reclaimer();
    WithoutGil release;
    reclaimer.pause();
  });
  module.def("resume_reclaimer",
             [](Self<FileHandle> handle) { handle->core().reclaimer().resume(); });
  module.def("start_reclaim_log",
             [](Self<FileHandle> handle) { handle->core().reclaimer().start_log(); });
  module.def("stop_reclaim_log",
             [](Self<FileHandle> handle) { handle->core().reclaimer().stop_log(); });
  module.def("reclaim_log", [](Self<FileHandle> handle) {
    py::list log;
    for (const FileRange& range : handle->core().reclaimer().log()) log.append(range_object(range));
    return log;
  });
  module.def("use_manual_clock", [](Self<FileHandle> handle, int64_t start_ns, int64_t tick_ns) {
    handle->core().clock().use_manual(std::chrono::nanoseconds(start_ns),
                                      std::chrono::nanoseconds(tick_ns));
  });
  module.def("advance_clock", [](Self<FileHandle> handle, int64_t by_ns) {
    handle->core().clock().advance(std::chrono::nanoseconds(by_ns));
  });
  module.def("use_real_clock", [](Self<FileHandle> handle) { handle->core().use_real_clock(); });
  module.def("use_manual_guard_clock", [](int64_t start_ns, int64_t tick_ns) {
    Guard::instance().clock().use_manual(std::chrono::nanoseconds(start_ns),
                                         std::chrono::nanoseconds(tick_ns));
  });
  module.def("use_real_guard_clock", [] { Guard::instance().clock().use_real(); });
  module.def("allow_loaders", [](bool allowed) { testing::loaders_allowed = allowed; });
  module.def("loaders_allowed", [] { return testing::loaders_allowed.load(); });
  module.def("load_waiters",
             [](Self<FileHandle> handle) { return handle->core().loader().waiters(); });
  module.def("reclaim_waiters",
             [](Self<FileHandle> handle) { return handle->core().reclaimer().waiters(); });
  module.def("bookkeeping_bytes",
             [](Self<FileHandle> handle) { return handle->core().bookkeeping_bytes(); });
  module.def("prefault_methods", [] {
    return py::make_tuple(testing::prefault_by_populate(), testing::prefault_by_mlock());
  });
  module.def("reset_prefault", &testing::reset_prefault);
  module.def("discard", [](uint64_t nbytes) {
    WithoutGil release;
    DiscardSource& files = FileRegistry::all();
    (void)files.release_kept(std::chrono::steady_clock::now());  // as the guard does first
    const auto done = files.discard(nbytes, std::chrono::steady_clock::time_point::max());
    if (!done.no_use() || done.given_back >= nbytes) return done.given_back;
    return done.given_back + files.sweep(nbytes - done.given_back, done.fruitless);
  });
}

}  // namespace

void bind_testing(py::module_& parent) {
  py::module_ module = parent.def_submodule("_testing", "What pgalloc.testing stands on.");
  bind_segment_set(module);
  bind_faults(module);
  bind_file_hooks(module);
  module.def("find_available_range", &find_available_range);
}

}  // namespace pgalloc::binding
