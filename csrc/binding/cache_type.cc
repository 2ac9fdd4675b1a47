// Purpose: CacheStore, the native part of a Cache: a C-API type, because its methods run millions of times.
#include <algorithm>
#include <new>
#include <utility>

#include "binding/arguments.h"
#include "binding/cache_object.h"
#include "binding/file_handle.h"
#include "binding/guarded.h"
#include "binding/without_gil.h"

namespace pgalloc::binding {

using cache::Store;

namespace {

PyTypeObject cache_type = {PyVarObject_HEAD_INIT(nullptr, 0)};

bool as_policy(PyObject* object, DiscardPolicy* policy) {
  Py_ssize_t length = 0;
  const char* const text =
      PyUnicode_Check(object) ? PyUnicode_AsUTF8AndSize(object, &length) : nullptr;
  if (text == nullptr) {
    if (PyErr_Occurred() == nullptr) PyErr_SetString(PyExc_TypeError, "policy must be a str");
    return false;
  }
  const auto* const found = std::find(kDiscardPolicyNames.begin(), kDiscardPolicyNames.end(),
                                      std::string_view(text, static_cast<size_t>(length)));
  if (found == kDiscardPolicyNames.end()) {
    PyErr_SetString(error_type(ErrorCode::kOption), "unknown policy");
    return false;
  }
  *policy = static_cast<DiscardPolicy>(found - kDiscardPolicyNames.begin());
  return true;
}

PyObject* tp_new(PyTypeObject* type, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"file", "policy", "maxsize", "remember_discarded", nullptr};
  PyObject* file = nullptr;
  PyObject* policy = nullptr;
  PyObject* maxsize = nullptr;
  int remember = 0;
  cache::StoreOptions options;
  uint64_t bytes_max = 0;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOp", const_cast<char**>(names), &file, &policy,
                                   &maxsize, &remember) ||
      !as_policy(policy, &options.policy) ||
      (maxsize != Py_None && !as_u64(maxsize, "maxsize", &bytes_max))) {
    return nullptr;
  }
  if (maxsize != Py_None) options.bytes_max = bytes_max;
  options.remembers_discarded = remember != 0;
  const FileHandle* const handle = handle_of(file);
  if (handle == nullptr) return nullptr;
  const std::shared_ptr<MemoryFile> shared = handle->shared();
  std::shared_ptr<Store> store;
  {
    Status status;
    {
      const WithoutGil release;
      Result<std::shared_ptr<Store>> made = Store::create(shared, options);
      if (made.ok()) {
        store = std::move(*made);
      } else {
        status = made.status().clone();
      }
    }
    if (!status.ok()) return set_error(status);
  }
  auto* const self = cache_of(type->tp_alloc(type, 0));
  if (self == nullptr) {
    const WithoutGil release;
    store.reset();
    return nullptr;
  }
  new (&self->store) std::shared_ptr<Store>(std::move(store));
  self->memory_file = Py_NewRef(file);
  return reinterpret_cast<PyObject*>(self);
}

int tp_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(cache_of(self)->memory_file);
  return 0;
}

int tp_clear(PyObject* self) {
  Py_CLEAR(cache_of(self)->memory_file);
  return 0;
}

void tp_dealloc(PyObject* object) {
  PyObject_GC_UnTrack(object);
  {
    const WithoutGil release;  // the last one waits for the guard
    cache_of(object)->store.~shared_ptr();
  }
  tp_clear(object);
  Py_TYPE(object)->tp_free(object);
}

// --- Methods -------------------------------------------------------------------------------------

bool usable(PyObject* object) {
  const Status status = cache_of(object)->store->check_usable();
  if (!status.ok()) set_error(status);
  return status.ok();
}

PyObject* check(PyObject* object, PyObject*) {
  if (!usable(object)) return nullptr;
  Py_RETURN_NONE;
}

// Calls act(store, encoded) for a key; gives `otherwise`, a new reference, for what is none.
template <class Act>
PyObject* with_key(PyObject* object, PyObject* key, PyObject* otherwise, Act act) {
  KeyBytes bytes;
  const Encoded encoded = encode_key(key, &bytes);
  if (encoded == Encoded::kKey && usable(object)) {
    Py_DECREF(otherwise);
    return act(*cache_of(object)->store, bytes.view());
  }
  if (encoded == Encoded::kNoKey && usable(object)) return otherwise;
  Py_DECREF(otherwise);
  return nullptr;
}

PyObject* contains(PyObject* object, PyObject* key) {
  return with_key(object, key, Py_NewRef(Py_False), [](Store& store, std::string_view bytes) {
    return PyBool_FromLong(store.contains(bytes));
  });
}

PyObject* remove(PyObject* object, PyObject* key) {
  return with_key(object, key, Py_NewRef(Py_False), [](Store& store, std::string_view bytes) {
    return PyBool_FromLong(store.remove(bytes));
  });
}

PyObject* remove_tagged(PyObject* object, PyObject* tag) {
  return with_key(object, tag, PyLong_FromLong(0), [](Store& store, std::string_view bytes) {
    return PyLong_FromUnsignedLongLong(store.remove_tagged(bytes));
  });
}

PyObject* take(PyObject* object, PyObject* key) {
  KeyBytes bytes;
  const Encoded encoded = encode_key(key, &bytes);
  if (encoded == Encoded::kError || !usable(object)) return nullptr;
  CacheObject* const self = cache_of(object);
  // Of what is no key there is none.
  const auto value =
      self->store->take(encoded == Encoded::kKey ? bytes.view() : std::string_view());
  return value ? awaited_view_of(self, *value) : Py_NewRef(Py_None);
}

PyObject* take_next(PyObject* object, PyObject*) {
  if (!usable(object)) return nullptr;
  CacheObject* const self = cache_of(object);
  const auto found = self->store->take_next();
  if (!found) Py_RETURN_NONE;
  PyObject* const view = awaited_view_of(self, found->second);
  PyObject* const key = view == nullptr ? nullptr : decode_key(found->first);
  PyObject* const item = key == nullptr ? nullptr : PyTuple_Pack(2, key, view);
  Py_XDECREF(key);
  Py_XDECREF(view);
  return item;
}

PyObject* clear(PyObject* object, PyObject*) {
  if (!usable(object)) return nullptr;
  const std::shared_ptr<Store> store = cache_of(object)->store;
  {
    const WithoutGil release;
    store->clear();
  }
  Py_RETURN_NONE;
}

PyObject* evict(PyObject* object, PyObject* nbytes) {
  uint64_t bytes = 0;
  if (!as_u64(nbytes, "nbytes", &bytes) || !usable(object)) return nullptr;
  return PyLong_FromUnsignedLongLong(cache_of(object)->store->evict(bytes));
}

PyObject* close(PyObject* object, PyObject*) {
  const std::shared_ptr<Store> store = cache_of(object)->store;
  {
    const WithoutGil release;
    store->close();
  }
  Py_RETURN_NONE;
}

PyObject* keys(PyObject* object, PyObject*) {
  if (!usable(object)) return nullptr;
  const Store::Keys keys = cache_of(object)->store->keys();
  PyObject* const list = PyList_New(static_cast<Py_ssize_t>(keys.ends.size()));
  uint64_t start = 0;
  for (size_t i = 0; list != nullptr && i < keys.ends.size(); ++i) {
    PyObject* const key =
        decode_key(std::string_view(keys.bytes).substr(start, keys.ends[i] - start));
    if (key == nullptr) {
      Py_DECREF(list);
      return nullptr;
    }
    PyList_SET_ITEM(list, static_cast<Py_ssize_t>(i), key);
    start = keys.ends[i];
  }
  return list;
}

PyObject* take_discarded(PyObject* object, PyObject*) {
  if (!usable(object)) return nullptr;
  const auto key = cache_of(object)->store->take_discarded();
  if (!key) Py_RETURN_NONE;
  return decode_key(*key);
}

PyObject* get_count(PyObject* object, PyObject*) {
  if (!usable(object)) return nullptr;
  return PyLong_FromUnsignedLongLong(cache_of(object)->store->count());
}

PyObject* get_size(PyObject* object, PyObject*) {
  if (!usable(object)) return nullptr;
  return PyLong_FromUnsignedLongLong(cache_of(object)->store->size());
}

PyObject* get_maxsize(PyObject* object, void*) {
  const auto bytes_max = cache_of(object)->store->bytes_max();
  if (!bytes_max) Py_RETURN_NONE;
  return PyLong_FromUnsignedLongLong(*bytes_max);
}

PyGetSetDef properties[] = {
    {"maxsize", get_maxsize, nullptr, "The most bytes to hold, or None.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

// Keys and tags are those of pgalloc.cache.keys. All methods but close() raise ClosedError and ForkedError.
PyMethodDef methods[] = {
    {"check", guarded<check>, METH_NOARGS, "check($self, /)\n--\n\nRaise if it cannot be used."},
    {"get", guarded<cache_get>, METH_O,
     "get($self, key, /)\n--\n\nThe value as a view that holds it, or None. Counted."},
    {"look_again", guarded<cache_look_again>, METH_O,
     "look_again($self, key, /)\n--\n\nget(), not counted."},
    {"contains", guarded<contains>, METH_O,
     "contains($self, key, /)\n--\n\nWhether there is a value. Not counted."},
    {"put", erased(guarded<cache_put>), METH_FASTCALL,
     "put($self, key, data, seconds, tag, only_if_none, /)\n--\n\n"
     "Set a value. None; what it would count for if that exceeds maxsize; False for what is no\n"
     "key, or no tag. `data` is contiguous."},
    {"remove", guarded<remove>, METH_O,
     "remove($self, key, /)\n--\n\nRemove a value. Whether there was one."},
    {"remove_tagged", guarded<remove_tagged>, METH_O,
     "remove_tagged($self, tag, /)\n--\n\nRemove all values with a tag. Their number."},
    {"take", guarded<take>, METH_O,
     "take($self, key, /)\n--\n\nRemove a value and return it, or None. Counted."},
    {"take_next", guarded<take_next>, METH_NOARGS,
     "take_next($self, /)\n--\n\nRemove what would go next: key and value, or None."},
    {"clear", guarded<clear>, METH_NOARGS, "clear($self, /)\n--\n\nRemove everything."},
    {"evict", guarded<evict>, METH_O,
     "evict($self, nbytes, /)\n--\n\nGive up about so much. The bytes given up."},
    {"close", guarded<close>, METH_NOARGS, "close($self, /)\n--\n\nRelease all values, for good."},
    {"keys", guarded<keys>, METH_NOARGS, "keys($self, /)\n--\n\nA list of all keys."},
    {"take_discarded", guarded<take_discarded>, METH_NOARGS,
     "take_discarded($self, /)\n--\n\n"
     "A key whose value was discarded, if they are remembered; or None."},
    {"count", guarded<get_count>, METH_NOARGS, "count($self, /)\n--\n\nHow many values there are."},
    {"size", guarded<get_size>, METH_NOARGS, "size($self, /)\n--\n\nWhat counts for maxsize."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

CacheObject* checked_cache(PyObject* object) {
  if (!PyObject_TypeCheck(object, &cache_type)) {
    PyErr_Format(PyExc_TypeError, "expected a CacheStore, not %.100s", Py_TYPE(object)->tp_name);
    return nullptr;
  }
  return usable(object) ? cache_of(object) : nullptr;
}

bool add_cache_type(PyObject* module) {
  cache_type.tp_name = "pgalloc._core.CacheStore";
  cache_type.tp_doc =
      "CacheStore(file, policy, maxsize, remember_discarded)\n--\n\nWhat a Cache holds.";
  cache_type.tp_basicsize = sizeof(CacheObject);
  cache_type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC;
  cache_type.tp_new = guarded<tp_new>;
  cache_type.tp_dealloc = tp_dealloc;
  cache_type.tp_traverse = tp_traverse;
  cache_type.tp_clear = tp_clear;
  cache_type.tp_methods = methods;
  cache_type.tp_getset = properties;
  return add_cache_value_type() && PyType_Ready(&cache_type) == 0 &&
         PyModule_AddObjectRef(module, "CacheStore", reinterpret_cast<PyObject*>(&cache_type)) == 0;
}

}  // namespace pgalloc::binding
