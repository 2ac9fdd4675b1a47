// Purpose: writing images.
#include <pybind11/stl.h>

#include <string>

#include "binding/bind.h"
#include "binding/errors.h"
#include "binding/file_handle.h"
#include "binding/images.h"
#include "binding/self.h"
#include "imageio/image_writer.h"
#include "imageio/stream_file.h"

namespace pgalloc::binding {

namespace py = pybind11;

namespace {

using SteadyTime = std::chrono::steady_clock::time_point;

struct Item {
  ImageWriter::Item item;
};

// A file for an image, until a writer takes it over.
struct NewImageFile {
  std::unique_ptr<NewFile> file;
};

NewImageFile new_image_file(const std::string& path) {
  auto created = [&] {
    WithoutGil release;
    return NewFile::create(path);
  }();
  return {value_or_throw(std::move(created))};
}

class Writer {
 public:
  // `target`: a NewImageFile, which is used up; or None for a stream.
  Writer(Self<FileHandle> handle, const py::object& target, std::string restore_id,
         const std::vector<std::pair<std::string, py::bytes>>& hooks, bool keep_zeros) {
    SaveOptions options{.keep_zeros = keep_zeros, .restore_id = std::move(restore_id), .hooks = {}};
    for (const auto& [name, payload] : hooks) options.hooks.push_back({name, payload});
    const std::shared_ptr<MemoryFile> file = handle->shared();

    Result<std::optional<MemoryFile::Capture>> captured = std::optional<MemoryFile::Capture>();
    wait_interruptibly(py::none(), [&](SteadyTime deadline) {
      captured = file->capture(deadline);
      return !captured.ok() || captured->has_value();
    });
    const MemoryFile::Capture capture = *value_or_throw(std::move(captured));

    std::unique_ptr<ImageSink> sink;
    if (target.is_none()) {
      auto stream = std::make_unique<StreamSink>();
      stream_ = stream.get();
      sink = std::move(stream);
    } else {
      std::unique_ptr<NewFile> file = std::move(target.cast<NewImageFile&>().file);
      if (file == nullptr) throw py::value_error("the target is used up");
      sink = std::make_unique<FileSink>(std::move(file));
    }
    writer_ = std::make_shared<ImageWriter>(file, capture, std::move(options), std::move(sink));
  }
  ~Writer() { close(); }
  // Gives up what is not done; nothing is left behind when it returns, unless another thread is in a
  // call: then, when that ends.
  void close() {
    if (generation_ != process_generation()) {
      // A forked child: threads that are gone may hold the locks. Leave it all as it is.
      new std::shared_ptr<ImageWriter>(std::move(writer_));
      return;
    }
    WithoutGil release;
    if (writer_ != nullptr) writer_->give_up();
    writer_.reset();
  }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  // The caller keeps it alive for as long.
  std::shared_ptr<ImageWriter> core() const {
    if (generation_ != process_generation()) {
      throw_if_error(Status::error(ErrorCode::kForked, "the parent process saves, not this one"));
    }
    if (writer_ == nullptr) throw py::value_error("the writer is closed");
    return writer_;
  }

  void wait() {
    const std::shared_ptr<ImageWriter> writer = core();
    std::optional<Status> ended;
    wait_interruptibly(py::none(), [&](SteadyTime deadline) {
      ended = writer->wait(deadline);
      return ended.has_value();
    });
    throw_if_error(*ended);
  }

  // Of a stream: from now on what is finished is kept for take_kept(), not for next_block().
  void keep() {
    const std::shared_ptr<ImageWriter> writer = core();
    if (stream_ != nullptr) stream_->keep();
  }
  py::bytes take_kept() {
    const std::shared_ptr<ImageWriter> writer = core();
    return stream_ == nullptr ? py::bytes() : as_bytes(stream_->take_kept());
  }

  // The next bytes of a stream, in order; None at the end.
  py::object next_block() {
    std::span<const char> bytes;
    const std::shared_ptr<ImageWriter> writer = core();  // and with it, stream_
    auto state = StreamSink::State::kNothingYet;
    wait_interruptibly(py::none(), [&](SteadyTime deadline) {
      state = stream_->wait(deadline, &bytes);
      return state != StreamSink::State::kNothingYet;
    });
    if (state == StreamSink::State::kEnd) {
      wait();
      return py::none();
    }
    struct Taken {
      StreamSink& stream;
      ~Taken() { stream.take_done(); }
    } const taken{*stream_};
    // A copy: the receiver may keep it, and the writer goes on.
    return as_bytes(bytes);
  }

 private:
  const uint32_t generation_ = process_generation();
  StreamSink* stream_ = nullptr;  // owned by writer_
  std::shared_ptr<ImageWriter> writer_;
};

py::object next_item(Self<Writer> writer) {
  const std::shared_ptr<ImageWriter> core = writer->core();
  auto item = std::make_unique<Item>();
  while (true) {
    Status status;
    const bool more = [&] {
      WithoutGil release;
      Result<bool> taken = core->next(item->item);
      if (!taken.ok()) {
        status = std::move(taken).status();
        return false;
      }
      if (!*taken) return false;
      const bool for_encoder = item->item.what == ImageWriter::Item::What::kExtent &&
                               item->item.extent.head.map.count() > 0;
      if (for_encoder) return true;
      status = core->finish(item->item);
      item->item.what = ImageWriter::Item::What::kFront;
      return status.ok();
    }();
    throw_if_error(status);
    if (!more) return py::none();
    if (item->item.what == ImageWriter::Item::What::kExtent) return py::cast(std::move(item));
  }
}

void finish_item(Self<Writer> writer, Self<Item> item, const py::bytes& encoded) {
  const std::shared_ptr<ImageWriter> core = writer->core();
  const std::span<const char> bytes = as_span(encoded);
  Status status = [&] {
    WithoutGil release;
    return core->finish(item->item, bytes);
  }();
  throw_if_error(status);
}

void bind_streams(py::module_& module) {
  module.def(
      "open_stream",
      [](const std::string& path) {
        auto opened = [&] {
          WithoutGil release;
          return open_stream(path);
        }();
        return value_or_throw(std::move(opened));
      },
      py::arg("path"));
  module.def(
      "wait_for_stream",
      [](int fd, bool writable) {
        Result<bool> ready = false;
        wait_interruptibly(py::none(), [&](SteadyTime deadline) {
          ready = wait_for_stream(fd, writable ? StreamEvent::kWritable : StreamEvent::kReadable,
                                  deadline);
          return !ready.ok() || *ready;
        });
        value_or_throw(std::move(ready));
      },
      py::arg("fd"), py::arg("writable"));
}

}  // namespace

void bind_image_writer(py::module_& module) {
  bind_streams(module);
  py::class_<Item>(module, "ImageItem").def("raw", [](Self<Item> item) {
    return as_bytes(item->item.raw());
  });
  py::class_<NewImageFile>(module, "NewImageFile")
      .def(py::init(&new_image_file), py::arg("path"))
      .def("close", [](Self<NewImageFile> target) { target->file.reset(); });
  py::class_<Writer>(module, "ImageWriter")
      .def(py::init<Self<FileHandle>, const py::object&, std::string,
                    const std::vector<std::pair<std::string, py::bytes>>&, bool>(),
           py::arg("file"), py::arg("target"), py::arg("restore_id"), py::arg("hooks"),
           py::arg("keep_zeros"))
      .def(
          "start",
          [](Self<Writer> writer, unsigned threads) { return writer->core()->start(threads); },
          py::arg("threads"))
      .def("wait", [](Self<Writer> writer) { writer->wait(); })
      .def("next_block", [](Self<Writer> writer) { return writer->next_block(); })
      .def("keep", [](Self<Writer> writer) { writer->keep(); })
      .def("take_kept", [](Self<Writer> writer) { return writer->take_kept(); })
      .def("next_item", &next_item)
      .def("finish_item", &finish_item, py::arg("item"), py::arg("encoded"))
      .def("give_up", [](Self<Writer> writer) { writer->core()->give_up(); })
      .def("close", [](Self<Writer> writer) { writer->close(); });
}

}  // namespace pgalloc::binding
