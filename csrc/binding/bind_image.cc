// Purpose: reading images: whole files, and streams.
#include <pybind11/stl.h>

#include <string>

#include "binding/bind.h"
#include "binding/images.h"
#include "binding/self.h"

namespace pgalloc::binding {

namespace py = pybind11;

namespace {

const char* name_of(image::Encoding encoding) {
  return encoding == image::Encoding::kRaw ? "raw" : "zstd";
}

py::dict describe(uint64_t image_bytes, const image::Header& header,
                  const image::Metadata& metadata, const std::vector<image::IndexEntry>& index,
                  const image::Trailer& trailer) {
  py::list segments;
  for (const image::Usage& use : metadata.usage) {
    segments.append(py::make_tuple(use.range.start, use.range.end, static_cast<int>(use.kind),
                                   use.committed ? use.range.length() : 0, use.refs, use.memcg_id,
                                   use.huge));
  }
  py::list extents;
  for (const image::IndexEntry& entry : index) {
    extents.append(py::make_tuple(entry.range.start, entry.range.end, entry.offset,
                                  entry.stored_pages, entry.stored_length,
                                  name_of(entry.encoding)));
  }
  py::dict hooks;
  for (const image::Hook& hook : metadata.hooks) hooks[py::str(hook.name)] = hook.payload.size();
  py::dict result;
  result["version"] = header.version;
  result["page_size"] = page_size();
  result["image_bytes"] = image_bytes;
  result["file_size"] = header.file_size;
  result["restore_id"] = metadata.restore_id;
  result["segments"] = segments;
  result["extents"] = extents;
  result["hooks"] = hooks;
  result["stored_pages"] = trailer.stored_pages;
  result["zero_pages_skipped"] = trailer.zero_pages_skipped;
  return result;
}

py::list hooks_of(const image::Metadata& metadata) {
  py::list hooks;
  for (const image::Hook& hook : metadata.hooks) {
    hooks.append(py::make_tuple(hook.name, py::bytes(hook.payload)));
  }
  return hooks;
}

// An encoded extent's bytes and the length they decode to; None for one that is not encoded.
py::object encoded_or_none(const image::ExtentHead& head, const char* data) {
  if (head.encoding == image::Encoding::kRaw) return py::none();
  return py::make_tuple(as_bytes({data, head.stored_length}), head.raw_length());
}

OpenImage open_image(const py::object& source, uint64_t offset) {
  auto file = [&] {
    if (py::isinstance<py::bytes>(source)) {
      const auto path = source.cast<std::string>();
      WithoutGil release;
      return ImageFile::open_path(path);
    }
    const int fd = source.cast<int>();
    WithoutGil release;
    return ImageFile::open_duplicate(fd, offset);
  }();
  return {value_or_throw(std::move(file))};
}

void bind_image_file(py::module_& module) {
  py::class_<OpenImage>(module, "ImageFile")
      .def(py::init(&open_image), py::arg("source"), py::arg("offset") = 0)
      .def("describe",
           [](Self<OpenImage> image) {
             const ImageFile& file = *image->file;
             return describe(file.size(), file.header(), file.metadata(), file.index(),
                             file.trailer());
           })
      .def("hooks", [](Self<OpenImage> image) { return hooks_of(image->file->metadata()); })
      .def_property_readonly(
          "restore_id", [](Self<OpenImage> image) { return image->file->metadata().restore_id; })
      .def_property_readonly("file_size",
                             [](Self<OpenImage> image) { return image->file->header().file_size; })
      .def_property_readonly("image_bytes",
                             [](Self<OpenImage> image) { return image->file->size(); })
      .def_property_readonly("extent_count",
                             [](Self<OpenImage> image) { return image->file->index().size(); })
      .def_property_readonly(
          "has_encoded_extents",
          [](Self<OpenImage> image) { return image->file->has_encoded_extents(); })
      .def(
          "verify_extent",
          [](Self<OpenImage> image, size_t i) -> py::tuple {
            const ImageFile& file = *image->file;
            if (i >= file.index().size()) throw py::index_error();
            Buffer buffer;
            auto head = [&] {
              WithoutGil release;
              return file.read_extent(i, buffer);
            }();
            const image::ExtentHead checked = value_or_throw(std::move(head));
            return py::make_tuple(checked.stored_bytes() + page_size(),
                                  encoded_or_none(checked, buffer.data() + page_size()));
          },
          py::arg("i"));
}

void bind_image_stream(py::module_& module) {
  py::class_<StreamImage>(module, "ImageStream")
      .def(py::init<>())
      .def_property_readonly("wanted",
                             [](Self<StreamImage> image) { return image->stream.wanted(); })
      .def(
          "feed",
          [](Self<StreamImage> image, py::bytes bytes) {
            image->fed = std::move(bytes);
            const std::span<const char> span = as_span(image->fed);
            if (span.size() != image->stream.wanted()) throw py::value_error("not what was wanted");
            Status status = [&] {
              WithoutGil release;
              return image->stream.feed(span);
            }();
            throw_if_error(status);
          },
          py::arg("bytes"))
      .def_property_readonly("has_metadata",
                             [](Self<StreamImage> image) { return image->stream.has_metadata(); })
      .def_property_readonly(
          "has_extent", [](Self<StreamImage> image) { return image->stream.extent() != nullptr; })
      .def_property_readonly("offset",
                             [](Self<StreamImage> image) { return image->stream.offset(); })
      .def("encoded",
           [](Self<StreamImage> image) -> py::object {
             const image::ExtentHead* head = image->stream.extent();
             if (head == nullptr) return py::none();
             return encoded_or_none(*head, image->stream.data().data());
           })
      .def("hooks", [](Self<StreamImage> image) { return hooks_of(image->stream.metadata()); })
      .def_property_readonly(
          "restore_id", [](Self<StreamImage> image) { return image->stream.metadata().restore_id; })
      .def_property_readonly(
          "file_size", [](Self<StreamImage> image) { return image->stream.header().file_size; })
      .def("describe", [](Self<StreamImage> image) {
        const ImageStream& stream = image->stream;
        return describe(stream.offset(), stream.header(), stream.metadata(), stream.index(),
                        stream.trailer());
      });
}

}  // namespace

void bind_image(py::module_& module) {
  bind_image_file(module);
  bind_image_stream(module);
}

}  // namespace pgalloc::binding
