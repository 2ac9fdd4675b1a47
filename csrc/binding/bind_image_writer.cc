// Purpose: writing images.
#include <pybind11/stl.h>

#include <string>

#include "binding/bind.h"
#include "binding/errors.h"
#include "binding/file_handle.h"
#include "binding/images.h"
#include "binding/self.h"
#include "imageio/image_writer.h"

namespace pgalloc::binding {

namespace py = pybind11;

namespace {

using SteadyTime = std::chrono::steady_clock::time_point;

struct Item {
  ImageWriter::Item item;
};

class Writer {
 public:
  Writer(Self<FileHandle> handle, const py::object& path, std::string restore_id,
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
    if (path.is_none()) {
      auto stream = std::make_unique<StreamSink>();
      stream_ = stream.get();
      sink = std::move(stream);
    } else {
      const auto name = path.cast<std::string>();
      auto created = [&] {
        WithoutGil release;
        return NewFile::create(name);
      }();
      sink = std::make_unique<FileSink>(value_or_throw(std::move(created)));
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

}  // namespace

void bind_image_writer(py::module_& module) {
  py::class_<Item>(module, "ImageItem").def("raw", [](Self<Item> item) {
    return as_bytes(item->item.raw());
  });
  py::class_<Writer>(module, "ImageWriter")
      .def(py::init<Self<FileHandle>, const py::object&, std::string,
                    const std::vector<std::pair<std::string, py::bytes>>&, bool>(),
           py::arg("file"), py::arg("path"), py::arg("restore_id"), py::arg("hooks"),
           py::arg("keep_zeros"))
      .def(
          "start",
          [](Self<Writer> writer, unsigned threads) {
            throw_if_error(writer->core()->start(threads));
          },
          py::arg("threads"))
      .def("wait", [](Self<Writer> writer) { writer->wait(); })
      .def("next_block", [](Self<Writer> writer) { return writer->next_block(); })
      .def("next_item", &next_item)
      .def("finish_item", &finish_item, py::arg("item"), py::arg("encoded"))
      .def("give_up", [](Self<Writer> writer) { writer->core()->give_up(); })
      .def("close", [](Self<Writer> writer) { writer->close(); });
}

}  // namespace pgalloc::binding
