// Purpose: the exporter behind views of a cache's values: what it stands for stays as it is as long as a view is alive.
#include <new>
#include <utility>

#include "binding/cache_object.h"
#include "binding/without_gil.h"

namespace pgalloc::binding {
namespace {

// Invariant: it has a hold on its value, which it gives back in the process that took it. A forked child has a lease on
// the pages instead, until it ends.
struct ValueObject {
  PyObject_HEAD std::shared_ptr<cache::ValueSource> source;
  std::shared_ptr<ChunkMap> mapping;
  uint64_t hold;
  const char* address;
  Py_ssize_t size;
  uint32_t generation;
};

PyTypeObject value_type = {PyVarObject_HEAD_INIT(nullptr, 0)};

int get_buffer(PyObject* object, Py_buffer* buffer, int flags) {
  auto* const self = reinterpret_cast<ValueObject*>(object);
  return PyBuffer_FillInfo(buffer, object, const_cast<char*>(self->address), self->size, 1, flags);
}

void tp_dealloc(PyObject* object) {
  auto* const self = reinterpret_cast<ValueObject*>(object);
  if (self->generation == process_generation()) self->source->let_go(self->hold);
  if (self->source.use_count() == 1 || self->mapping.use_count() == 1) {
    const WithoutGil release;  // the last one waits for the guard, and ends mappings
    self->mapping.reset();
    self->source.reset();
  }
  self->mapping.~shared_ptr();
  self->source.~shared_ptr();
  PyObject_Free(object);
}

PyBufferProcs buffer_procs = {get_buffer, nullptr};

}  // namespace

PyObject* view_of(const std::shared_ptr<cache::ValueSource>& source, Pages& pages,
                  const cache::HeldValue& value) {
  const Result<char*> address = pages.map(value.pages);
  ValueObject* self = nullptr;
  if (address.ok()) {
    self = PyObject_New(ValueObject, &value_type);
  } else {
    set_error(address.status());
  }
  if (self == nullptr) {
    source->let_go(value.hold);
    return nullptr;
  }
  new (&self->source) std::shared_ptr<cache::ValueSource>(source);
  new (&self->mapping) std::shared_ptr<ChunkMap>(pages.chunks());
  self->hold = value.hold;
  self->address = *address + (value.place - value.pages.start);
  self->size = static_cast<Py_ssize_t>(value.length);
  self->generation = process_generation();
  PyObject* const view = PyMemoryView_FromObject(reinterpret_cast<PyObject*>(self));
  Py_DECREF(self);
  return view;
}

bool add_cache_value_type() {
  value_type.tp_name = "pgalloc._core._CachedValue";
  value_type.tp_doc = "A value of a cache, held as long as a view of it is alive.";
  value_type.tp_basicsize = sizeof(ValueObject);
  value_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION;
  value_type.tp_dealloc = tp_dealloc;
  value_type.tp_as_buffer = &buffer_procs;
  return PyType_Ready(&value_type) == 0;
}

}  // namespace pgalloc::binding
