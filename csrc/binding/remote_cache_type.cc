// Purpose: RemoteCache, the native part of a CacheReader: a C-API type, because its methods run millions of times.
#include <new>
#include <utility>

#include "binding/arguments.h"
#include "binding/cache_object.h"
#include "binding/file_handle.h"
#include "binding/guarded.h"
#include "binding/patience.h"
#include "binding/without_gil.h"
#include "cache/remote_store.h"

namespace pgalloc::binding {

using cache::RemoteStore;

namespace {

struct RemoteCacheObject {
  PyObject_HEAD std::shared_ptr<RemoteStore> store;
};

PyTypeObject remote_cache_type = {PyVarObject_HEAD_INIT(nullptr, 0)};

std::shared_ptr<RemoteStore>& store_of(PyObject* self) {
  return reinterpret_cast<RemoteCacheObject*>(self)->store;
}

PyObject* tp_new(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"file", nullptr};
  PyObject* object = nullptr;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O", const_cast<char**>(names), &object)) {
    return nullptr;
  }
  const PeerHandle* const handle = peer_handle_of(object);
  PeerFile* const peer = handle == nullptr ? nullptr : handle->peer();
  if (peer == nullptr) {
    if (PyErr_Occurred() == nullptr) {
      PyErr_Format(PyExc_TypeError, "expected a PeerFile, not %.100s", Py_TYPE(object)->tp_name);
    }
    return nullptr;
  }
  const std::shared_ptr<PeerFile> file = peer->shared_from_this();
  Result<std::shared_ptr<RemoteStore>> store = patiently(
      file->link().usual_patience(),
      [&](const OwnerLink::Patience& patience) { return RemoteStore::attach(file, patience); });
  if (!store.ok()) return set_error(store.status());
  PyObject* const self = a_handler_raises() ? nullptr : type->tp_alloc(type, 0);
  if (self == nullptr) {
    const WithoutGil release;
    *store = nullptr;
    return nullptr;
  }
  new (&store_of(self)) std::shared_ptr<RemoteStore>(std::move(*store));
  return self;
}

void tp_dealloc(PyObject* self) {
  {
    const WithoutGil release;
    store_of(self).~shared_ptr();
  }
  Py_TYPE(self)->tp_free(self);
}

bool usable(PyObject* self) {
  const Status status = store_of(self)->check_usable();
  if (!status.ok()) set_error(status);
  return status.ok();
}

PyObject* check(PyObject* self, PyObject*) {
  if (!usable(self)) return nullptr;
  Py_RETURN_NONE;
}

PyObject* look(PyObject* self, PyObject* key, bool counted) {
  KeyBytes bytes;
  const Encoded encoded = encode_key(key, &bytes);
  if (encoded == Encoded::kError || !usable(self)) return nullptr;
  const std::shared_ptr<RemoteStore>& store = store_of(self);
  if (encoded == Encoded::kNoKey) Py_RETURN_NONE;  // of what is no key there is none
  const auto value = store->get(bytes.view(), counted);
  if (!value) Py_RETURN_NONE;
  return view_of(store, store->file(), *value);
}

PyObject* get(PyObject* self, PyObject* key) { return look(self, key, /*counted=*/true); }
PyObject* look_again(PyObject* self, PyObject* key) { return look(self, key, /*counted=*/false); }

PyObject* contains(PyObject* self, PyObject* key) {
  KeyBytes bytes;
  const Encoded encoded = encode_key(key, &bytes);
  if (encoded == Encoded::kError || !usable(self)) return nullptr;
  return PyBool_FromLong(encoded == Encoded::kKey && store_of(self)->contains(bytes.view()));
}

PyObject* close(PyObject* self, PyObject*) {
  store_of(self)->close();
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"check", guarded<check>, METH_NOARGS, "check($self, /)\n--\n\nRaise if it cannot be used."},
    {"get", guarded<get>, METH_O,
     "get($self, key, /)\n--\n\nThe value as a view that holds it, or None. Counted."},
    {"look_again", guarded<look_again>, METH_O,
     "look_again($self, key, /)\n--\n\nget(), not counted."},
    {"contains", guarded<contains>, METH_O,
     "contains($self, key, /)\n--\n\nWhether there is a value. Not counted."},
    {"close", guarded<close>, METH_NOARGS,
     "close($self, /)\n--\n\nLook nothing up any more. Views stay valid."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

bool add_remote_cache_type(PyObject* module) {
  remote_cache_type.tp_name = "pgalloc._core.RemoteCache";
  remote_cache_type.tp_doc = "RemoteCache(file)\n--\n\nThe cache that the owner of a PeerFile serves.";
  remote_cache_type.tp_basicsize = sizeof(RemoteCacheObject);
  remote_cache_type.tp_flags = Py_TPFLAGS_DEFAULT;
  remote_cache_type.tp_new = guarded<tp_new>;
  remote_cache_type.tp_dealloc = tp_dealloc;
  remote_cache_type.tp_methods = methods;
  return PyType_Ready(&remote_cache_type) == 0 &&
         PyModule_AddObjectRef(module, "RemoteCache",
                               reinterpret_cast<PyObject*>(&remote_cache_type)) == 0;
}

}  // namespace pgalloc::binding
