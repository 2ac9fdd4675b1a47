// Purpose: a time without discards.
#include <memory>

#include "binding/bind.h"
#include "binding/file_handle.h"
#include "binding/self.h"

namespace pgalloc::binding {

namespace py = pybind11;

namespace {

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

void bind_discards(py::module_& module) {
  py::class_<HeldDiscards>(module, "HeldDiscards")
      .def(py::init([](const py::object& memory_file) {
             const FileHandle* handle = handle_of(memory_file.ptr());
             if (handle == nullptr) throw py::error_already_set();
             return std::make_unique<HeldDiscards>(*handle);
           }),
           py::arg("memory_file"))
      .def("release", [](Self<HeldDiscards> self) { self->release(); });
}

}  // namespace pgalloc::binding
