// Purpose: the exporter behind read-only views of a part of an Allocation. One object and one
// memoryview: less than slicing a view of the whole and making that read-only.
#include "binding/file_handle.h"

namespace pgalloc::binding {
namespace {

struct PartObject {
  PyObject_HEAD PyObject* owner;
  const char* address;
  Py_ssize_t size;
  void (*release)(PyObject*);
};

PyTypeObject part_type = {PyVarObject_HEAD_INIT(nullptr, 0)};

int get_buffer(PyObject* self, Py_buffer* buffer, int flags) {
  auto* part = reinterpret_cast<PartObject*>(self);
  return PyBuffer_FillInfo(buffer, self, const_cast<char*>(part->address), part->size, 1, flags);
}

void tp_dealloc(PyObject* self) {
  auto* part = reinterpret_cast<PartObject*>(self);
  part->release(part->owner);
  Py_DECREF(part->owner);
  PyObject_Free(self);
}

PyBufferProcs buffer_procs = {get_buffer, nullptr};

}  // namespace

PyObject* part_view(PyObject* owner, const char* address, uint64_t size,
                    void (*release)(PyObject*)) {
  auto* part = PyObject_New(PartObject, &part_type);
  if (part == nullptr) {
    release(owner);
    return nullptr;
  }
  part->owner = Py_NewRef(owner);
  part->address = address;
  part->size = static_cast<Py_ssize_t>(size);
  part->release = release;
  PyObject* view = PyMemoryView_FromObject(reinterpret_cast<PyObject*>(part));
  Py_DECREF(part);
  return view;
}

bool add_part_type(PyObject*) {
  part_type.tp_name = "pgalloc._core._Part";
  part_type.tp_doc = "A part of an Allocation, pinned as long as a view of it is alive.";
  part_type.tp_basicsize = sizeof(PartObject);
  part_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION;
  part_type.tp_dealloc = tp_dealloc;
  part_type.tp_as_buffer = &buffer_procs;
  return PyType_Ready(&part_type) == 0;
}

}  // namespace pgalloc::binding
