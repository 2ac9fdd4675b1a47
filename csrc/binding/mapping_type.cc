// Purpose: the exporter behind the views that map_range() returns. It owns the mapping.
#include <new>

#include "binding/file_handle.h"

namespace pgalloc::binding {
namespace {

struct MappingObject {
  PyObject_HEAD std::shared_ptr<ChunkMap> chunks;
  bool exporting;  // only while whole_view() makes its view
};

PyTypeObject mapping_type = {PyVarObject_HEAD_INIT(nullptr, 0)};

// The whole range holds addresses where nothing is mapped: code that reached this object
// through view.obj must not get a buffer over them.
int get_buffer(PyObject* self, Py_buffer* buffer, int flags) {
  auto* mapping = reinterpret_cast<MappingObject*>(self);
  if (!mapping->exporting) {
    PyErr_SetString(PyExc_BufferError, "use MemoryFile.map_range() for another view");
    buffer->obj = nullptr;
    return -1;
  }
  return PyBuffer_FillInfo(buffer, self, mapping->chunks->base(),
                           static_cast<Py_ssize_t>(mapping->chunks->capacity()), 0, flags);
}

void tp_dealloc(PyObject* self) {
  reinterpret_cast<MappingObject*>(self)->chunks.~shared_ptr();
  PyObject_Free(self);
}

PyBufferProcs buffer_procs = {get_buffer, nullptr};

}  // namespace

PyObject* whole_view(std::shared_ptr<ChunkMap> chunks, bool readonly) {
  auto* mapping = PyObject_New(MappingObject, &mapping_type);
  if (mapping == nullptr) return nullptr;
  new (&mapping->chunks) std::shared_ptr<ChunkMap>(std::move(chunks));
  mapping->exporting = true;
  PyObject* view = PyMemoryView_FromObject(reinterpret_cast<PyObject*>(mapping));
  mapping->exporting = false;
  Py_DECREF(mapping);
  if (view == nullptr || !readonly) return view;
  PyObject* readonly_view = PyObject_CallMethod(view, "toreadonly", nullptr);
  Py_DECREF(view);
  return readonly_view;
}

bool add_mapping_type(PyObject*) {
  mapping_type.tp_name = "pgalloc._core._Mapping";
  mapping_type.tp_doc = "The mapping of a MemoryFile, alive as long as a view of it is.";
  mapping_type.tp_basicsize = sizeof(MappingObject);
  mapping_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION;
  mapping_type.tp_dealloc = tp_dealloc;
  mapping_type.tp_as_buffer = &buffer_procs;
  return PyType_Ready(&mapping_type) == 0;
}

}  // namespace pgalloc::binding
