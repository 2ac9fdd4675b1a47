// Purpose: bringing an image into a file, and finding owners for its pages.
#include <pybind11/stl.h>

#include <string>

#include "binding/arguments.h"
#include "binding/bind.h"
#include "binding/errors.h"
#include "binding/file_handle.h"
#include "binding/images.h"
#include "binding/self.h"

namespace pgalloc::binding {

namespace py = pybind11;

namespace {

using SteadyTime = std::chrono::steady_clock::time_point;

struct Arriving {
  std::shared_ptr<MemoryFile> file;  // outlives the extent
  std::unique_ptr<ArrivingExtent> extent;

  ArrivingExtent& open() const {
    if (extent == nullptr) throw py::value_error("the extent is settled");
    return *extent;
  }
};

py::object arriving_or_none(const std::shared_ptr<MemoryFile>& file,
                            std::unique_ptr<ArrivingExtent> extent) {
  if (extent == nullptr) return py::none();
  return py::cast(std::make_unique<Arriving>(Arriving{file, std::move(extent)}));
}

FileRange range_or_everything(const py::object& object) {
  FileRange range{0, kMaxOffset};
  if (!object.is_none() && !as_file_range(object.ptr(), &range)) throw py::error_already_set();
  return range;
}

// (True, None): all of it is there. (False, None): the time is over. (False, extent): decode it, and
// call again.
py::tuple load(Self<FileHandle> handle, const py::object& range_object, const py::object& timeout_s,
               bool ignore_broken) {
  const FileRange range = range_or_everything(range_object);
  const std::shared_ptr<MemoryFile> file = handle->shared();
  std::unique_ptr<ArrivingExtent> encoded;
  Result<bool> there = false;
  wait_interruptibly(timeout_s, [&](SteadyTime deadline) {
    there = file->loader().load(range, deadline, &encoded, ignore_broken);
    return !there.ok() || *there || encoded != nullptr;
  });
  const bool all_there = value_or_throw(std::move(there));
  return py::make_tuple(all_there, arriving_or_none(file, std::move(encoded)));
}

// (False, None): nothing waits any more. (True, None): one extent was loaded.
py::tuple load_next(Self<FileHandle> handle) {
  const std::shared_ptr<MemoryFile> file = handle->shared();
  std::unique_ptr<ArrivingExtent> encoded;
  Result<bool> any = [&] {
    WithoutGil release;
    return file->loader().load_next(&encoded);
  }();
  return py::make_tuple(value_or_throw(std::move(any)), arriving_or_none(file, std::move(encoded)));
}

void bind_arriving(py::module_& module) {
  py::class_<Arriving>(module, "ArrivingExtent")
      .def("encoded", [](Self<Arriving> arriving) { return as_bytes(arriving->open().encoded()); })
      .def_property_readonly("raw_length",
                             [](Self<Arriving> arriving) { return arriving->open().raw_length(); })
      .def(
          "deliver",
          [](Self<Arriving> arriving, const py::bytes& raw) {
            const std::span<const char> bytes = as_span(raw);
            if (bytes.size() != arriving->open().raw_length()) throw py::value_error("raw");
            Status status = [&] {
              WithoutGil release;
              return arriving->open().deliver(bytes);
            }();
            throw_if_error(status);
          },
          py::arg("raw"))
      .def(
          "fail",
          [](Self<Arriving> arriving, std::string message) {
            arriving->open().fail(Status::error(ErrorCode::kSnapshotCorrupt, std::move(message)));
          },
          py::arg("message"))
      // The file waits for this before it closes: no traceback must put it off.
      .def("close", [](Self<Arriving> arriving) { arriving->extent.reset(); });
}

}  // namespace

void bind_restore(py::module_& module) {
  bind_arriving(module);
  module.def("default_capacity", &default_capacity);

  // bind_memory_file() made the class; these are further methods of it.
  auto type = py::reinterpret_borrow<py::class_<FileHandle>>(module.attr("MemoryFile"));
  type.def("_restore",
           [](Self<FileHandle> handle, Self<OpenImage> image) {
             throw_if_error(handle->core().restore(image->file->header().file_size,
                                                   image->file->metadata().usage));
           })
      .def("_restore_stream",
           [](Self<FileHandle> handle, Self<StreamImage> image) {
             throw_if_error(handle->core().restore(image->stream.header().file_size,
                                                   image->stream.metadata().usage));
           })
      .def("_write_restored",
           [](Self<FileHandle> handle, Self<StreamImage> image, const py::object& decoded) {
             const image::ExtentHead* head = image->stream.extent();
             if (head == nullptr) throw py::value_error("no extent");
             std::span<const char> raw = image->stream.data();
             if (!decoded.is_none()) raw = as_span(py::reinterpret_borrow<py::bytes>(decoded));
             if (raw.size() < head->raw_length()) throw py::value_error("raw");
             MemoryFile& file = handle->core();
             Status status = [&] {
               WithoutGil release;
               return file.loader().write_restored(*head, raw.data());
             }();
             throw_if_error(status);
           })
      .def("_start_loading",
           [](Self<FileHandle> handle, Self<OpenImage> image, unsigned threads) {
             MemoryFile& file = handle->core();
             Status status = [&] {
               WithoutGil release;
               return file.start_loading(image->file, threads);
             }();
             throw_if_error(status);
           })
      .def("_load", &load)
      .def("_load_next", &load_next)
      .def_property_readonly("_incomplete",
                             [](Self<FileHandle> handle) { return handle->pages().incomplete(); })
      .def_property_readonly(
          "loading",
          [](Self<FileHandle> handle) {
            return handle->ask([](MemoryFile& file) { return file.loader().loading(); });
          },
          "Whether pages are still on their way from the image.")
      .def("_load_progress",
           [](Self<FileHandle> handle) {
             const auto progress =
                 handle->ask([](MemoryFile& file) { return file.loader().progress(); });
             return py::make_tuple(progress.total_bytes, progress.pending_bytes,
                                   progress.dropped_bytes, progress.failed_bytes);
           })
      .def(
          "adopt_range",
          [](Self<FileHandle> handle, const py::object& range_object) {
            FileRange range;
            if (!as_file_range(range_object.ptr(), &range)) throw py::error_already_set();
            throw_if_error(handle->core().references().adopt(range));
          },
          py::arg("range"),
          "Take over one reference on each page of `range` that the image recorded; balance it\n"
          "with dec_ref(). Raises RangeError unless the whole range is allocated, RefCountError\n"
          "if a page has no such reference left.")
      .def_property_readonly("_unadopted_bytes",
                             [](Self<FileHandle> handle) {
                               return handle->ask([](MemoryFile& file) {
                                 return file.references().unadopted_bytes();
                               });
                             })
      .def("_unadopted",
           [](Self<FileHandle> handle) {
             py::list result;
             const auto unadopted =
                 handle->ask([](MemoryFile& file) { return file.references().unadopted(); });
             for (const auto& [range, count] : unadopted) {
               result.append(py::make_tuple(range.start, range.end, count));
             }
             return result;
           })
      .def(
          "drop_unadopted",
          [](Self<FileHandle> handle) {
            return value_or_throw(handle->core().references().drop_unadopted());
          },
          "Drop the references of a restored file that were not adopted. Returns the bytes of the\n"
          "pages that had any.");
}

}  // namespace pgalloc::binding
