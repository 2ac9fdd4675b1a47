// Purpose: CacheStore, the native part of a Cache: a C-API type, because its methods run millions of times.
#include <algorithm>
#include <new>
#include <utility>

#include "binding/arguments.h"
#include "binding/cache_object.h"
#include "binding/file_handle.h"
#include "binding/guarded.h"
#include "binding/patience.h"
#include "binding/without_gil.h"

namespace pgalloc::binding {

using cache::RemoteStore;
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

// nullptr with an exception set.
std::shared_ptr<RemoteStore> attach(PeerFile& peer, uint64_t cache) {
  const std::shared_ptr<PeerFile> file = peer.shared_from_this();
  Result<std::shared_ptr<RemoteStore>> store =
      patiently(file->link().usual_patience(), [&](const OwnerLink::Patience& patience) {
        return RemoteStore::attach(file, cache, patience);
      });
  if (!store.ok()) return set_error(store.status()), nullptr;
  if (!a_handler_raises()) return std::move(*store);
  const WithoutGil release;
  *store = nullptr;
  return nullptr;
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
  new (&self->remote) std::shared_ptr<RemoteStore>;
  self->memory_file = Py_NewRef(file);
  return reinterpret_cast<PyObject*>(self);
}

// connect(file): the cache that the owner of a PeerFile serves.
PyObject* connect(PyObject* type, PyObject* object) {
  const PeerHandle* const handle = peer_handle_of(object);
  PeerFile* const peer = handle == nullptr ? nullptr : handle->peer();
  if (peer == nullptr) {
    if (PyErr_Occurred() == nullptr) {
      PyErr_Format(PyExc_TypeError, "expected a PeerFile, not %.100s", Py_TYPE(object)->tp_name);
    }
    return nullptr;
  }
  std::shared_ptr<RemoteStore> remote = attach(*peer, 0);
  if (remote == nullptr) return nullptr;
  auto* const self = cache_of(
      reinterpret_cast<PyTypeObject*>(type)->tp_alloc(reinterpret_cast<PyTypeObject*>(type), 0));
  if (self == nullptr) {
    const WithoutGil release;
    remote.reset();
    return nullptr;
  }
  new (&self->store) std::shared_ptr<Store>;
  new (&self->remote) std::shared_ptr<RemoteStore>(std::move(remote));
  self->memory_file = Py_NewRef(object);
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
    CacheObject* const self = cache_of(object);
    // Views keep the store, but not its values: also if a signal handler cut a finalizer in Python short.
    if (self->store != nullptr) self->store->close();
    self->remote.~shared_ptr();
    self->store.~shared_ptr();
  }
  tp_clear(object);
  Py_TYPE(object)->tp_free(object);
}

// The file as a forked child has it; nullptr if it has none.
PeerFile* peer_of_child(const CacheObject* self) {
  if (self->memory_file == nullptr) return nullptr;
  if (const PeerHandle* const handle = peer_handle_of(self->memory_file)) return handle->peer();
  const FileHandle* const handle = handle_of(self->memory_file);
  return handle == nullptr ? nullptr : handle->peer();
}

// --- Methods -------------------------------------------------------------------------------------

bool usable(PyObject* object) {
  CacheSide side;
  return side_of(cache_of(object), &side);
}

PyObject* check(PyObject* object, PyObject*) {
  if (!usable(object)) return nullptr;
  Py_RETURN_NONE;
}

PyObject* made(bool value) { return PyBool_FromLong(value); }
PyObject* made(uint64_t value) { return PyLong_FromUnsignedLongLong(value); }

// What the owner says, as made() makes it.
template <class Ask>
PyObject* asked(RemoteStore& remote, Ask ask) {
  const auto answer = patiently(remote.file().link().usual_patience(), ask);
  return answer.ok() ? made(*answer) : set_error(answer.status());
}

// What `own(store)` or `remote(store, patience)` says.
template <class Own, class Remote>
PyObject* either(PyObject* object, Own own, Remote remote) {
  CacheSide side;
  if (!side_of(cache_of(object), &side)) return nullptr;
  if (side.own != nullptr) return made(own(*side.own));
  return asked(*side.remote,
               [&](const OwnerLink::Patience& patience) { return remote(*side.remote, patience); });
}

// The same for a key; `otherwise` for what is none.
template <class Otherwise, class Own, class Remote>
PyObject* of_key(PyObject* object, PyObject* key, Otherwise otherwise, Own own, Remote remote) {
  KeyBytes bytes;
  const Encoded encoded = encode_key(key, &bytes);
  if (encoded == Encoded::kError) return nullptr;
  if (encoded == Encoded::kNoKey) return usable(object) ? made(otherwise) : nullptr;
  return either(
      object, [&](Store& store) { return own(store, bytes.view()); },
      [&](RemoteStore& store, const OwnerLink::Patience& patience) {
        return remote(store, bytes.view(), patience);
      });
}

PyObject* contains(PyObject* object, PyObject* key) {
  return of_key(
      object, key, false,
      [](Store& store, std::string_view bytes) { return store.contains(bytes); },
      [](RemoteStore& store, std::string_view bytes, const OwnerLink::Patience&) {
        return Result<bool>(store.contains(bytes));
      });
}

PyObject* remove(PyObject* object, PyObject* key) {
  return of_key(
      object, key, false, [](Store& store, std::string_view bytes) { return store.remove(bytes); },
      [](RemoteStore& store, std::string_view bytes, const OwnerLink::Patience& patience) {
        return store.remove(bytes, patience);
      });
}

PyObject* remove_tagged(PyObject* object, PyObject* tag) {
  return of_key(
      object, tag, uint64_t{0},
      [](Store& store, std::string_view bytes) {
        const WithoutGil release;
        return store.remove_tagged(bytes);
      },
      [](RemoteStore& store, std::string_view bytes, const OwnerLink::Patience& patience) {
        return store.remove_tagged(bytes, patience);
      });
}

// touch(key, seconds)
PyObject* touch(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  uint64_t lasts_ns = 0;
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "touch() takes key and seconds");
    return nullptr;
  }
  if (!as_lifetime(args[1], &lasts_ns)) return nullptr;
  KeyBytes bytes;
  const Encoded encoded = encode_key(args[0], &bytes);
  CacheSide side;
  if (encoded == Encoded::kError || !side_of(cache_of(object), &side)) return nullptr;
  if (encoded == Encoded::kNoKey) Py_RETURN_FALSE;
  if (side.own == nullptr) {
    return asked(*side.remote, [&](const OwnerLink::Patience& patience) {
      return side.remote->touch(bytes.view(), lasts_ns, patience);
    });
  }
  const Result<bool> done = side.own->touch(bytes.view(), side.own->expiry_in(lasts_ns));
  return done.ok() ? made(*done) : set_error(done.status());
}

PyObject* take(PyObject* object, PyObject* key) {
  CacheObject* const self = cache_of(object);
  KeyBytes bytes;
  const Encoded encoded = encode_key(key, &bytes);
  CacheSide side;
  if (encoded == Encoded::kError || !side_of(self, &side)) return nullptr;
  if (side.own != nullptr) {
    // Of what is no key there is none.
    const auto value = side.own->take(encoded == Encoded::kKey ? bytes.view() : std::string_view());
    return value ? view_on(self, side, *value) : Py_NewRef(Py_None);
  }
  if (encoded == Encoded::kNoKey) Py_RETURN_NONE;
  const auto taken = patiently(side.remote->file().link().usual_patience(),
                               [&](const OwnerLink::Patience& patience) {
                                 return side.remote->take(bytes.view(), patience);
                               });
  if (!taken.ok()) return set_error(taken.status());
  return *taken ? view_on(self, side, (*taken)->second) : Py_NewRef(Py_None);
}

PyObject* take_next(PyObject* object, PyObject*) {
  CacheObject* const self = cache_of(object);
  CacheSide side;
  if (!side_of(self, &side)) return nullptr;
  RemoteStore::Taken found;
  if (side.own != nullptr) {
    found = side.own->take_next();
  } else {
    auto taken = patiently(side.remote->file().link().usual_patience(),
                           [&](const OwnerLink::Patience& patience) {
                             return side.remote->take(std::nullopt, patience);
                           });
    if (!taken.ok()) return set_error(taken.status());
    found = std::move(*taken);
  }
  if (!found) Py_RETURN_NONE;
  PyObject* const view = view_on(self, side, found->second);
  PyObject* const key = view == nullptr ? nullptr : decode_key(found->first);
  PyObject* const item = key == nullptr ? nullptr : PyTuple_Pack(2, key, view);
  Py_XDECREF(key);
  Py_XDECREF(view);
  return item;
}

PyObject* clear(PyObject* object, PyObject*) {
  CacheSide side;
  if (!side_of(cache_of(object), &side)) return nullptr;
  if (side.own == nullptr) {
    const Status status = patiently(
        side.remote->file().link().usual_patience(),
        [&](const OwnerLink::Patience& patience) { return side.remote->clear(patience); });
    if (!status.ok()) return set_error(status);
  } else {
    const WithoutGil release;
    side.own->clear();
  }
  Py_RETURN_NONE;
}

PyObject* evict(PyObject* object, PyObject* nbytes) {
  uint64_t bytes = 0;
  if (!as_u64(nbytes, "nbytes", &bytes)) return nullptr;
  return either(
      object,
      [&](Store& store) {
        const WithoutGil release;
        return store.evict(bytes);
      },
      [&](RemoteStore& store, const OwnerLink::Patience& patience) {
        return store.evict(bytes, patience);
      });
}

PyObject* close(PyObject* object, PyObject*) {
  CacheObject* const self = cache_of(object);
  self->closed = true;
  const std::shared_ptr<Store> store = self->store;
  const std::shared_ptr<RemoteStore> remote = self->remote;
  {
    const WithoutGil release;
    if (remote != nullptr) remote->close();
    if (store != nullptr) store->close();  // nothing in a forked child
  }
  Py_RETURN_NONE;
}

PyObject* keys(PyObject* object, PyObject*) {
  CacheSide side;
  if (!side_of(cache_of(object), &side)) return nullptr;
  const Store::Keys keys = side.own != nullptr ? side.own->keys() : side.remote->keys();
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
  CacheSide side;
  if (!side_of(cache_of(object), &side)) return nullptr;
  const auto key = side.own == nullptr ? std::nullopt : side.own->take_discarded();
  if (!key) Py_RETURN_NONE;
  return decode_key(*key);
}

PyObject* get_count(PyObject* object, PyObject*) {
  return either(
      object, [](Store& store) { return store.count(); },
      [](RemoteStore& store, const OwnerLink::Patience& patience) -> Result<uint64_t> {
        const auto stats = store.stats(patience);
        if (!stats.ok()) return stats.status().clone();
        return stats->entries;
      });
}

PyObject* get_size(PyObject* object, PyObject*) {
  return either(
      object, [](Store& store) { return store.size(); },
      [](RemoteStore& store, const OwnerLink::Patience& patience) -> Result<uint64_t> {
        const auto stats = store.stats(patience);
        if (!stats.ok()) return stats.status().clone();
        return stats->size;
      });
}

PyObject* get_maxsize(PyObject* object, void*) {
  const CacheObject* const self = cache_of(object);
  const auto bytes_max =
      self->store != nullptr ? self->store->bytes_max() : self->remote->bytes_max();
  if (!bytes_max) Py_RETURN_NONE;
  return PyLong_FromUnsignedLongLong(*bytes_max);
}

PyObject* get_policy(PyObject* object, void*) {
  const CacheObject* const self = cache_of(object);
  const DiscardPolicy policy =
      self->store != nullptr ? self->store->policy() : self->remote->policy();
  const std::string_view name = kDiscardPolicyNames[static_cast<size_t>(policy)];
  return PyUnicode_FromStringAndSize(name.data(), static_cast<Py_ssize_t>(name.size()));
}

PyGetSetDef properties[] = {
    {"maxsize", get_maxsize, nullptr, "The most bytes to hold, or None.", nullptr},
    {"policy", get_policy, nullptr, "The name of the policy.", nullptr},
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
     "Set a value. None; False if there is one, and only_if_none; what it would count for if that\n"
     "exceeds maxsize; NotImplemented for what is no key, or no tag. `data` is contiguous."},
    {"increment", erased(guarded<cache_increment>), METH_FASTCALL,
     "increment($self, key, delta, initial, /)\n--\n\n"
     "Add to a number. The number; None if there is none; False for what is none, or too large;\n"
     "NotImplemented for what is no key."},
    {"touch", erased(guarded<touch>), METH_FASTCALL,
     "touch($self, key, seconds, /)\n--\n\nHave a value last so long. Whether there is one."},
    {"connect", guarded<connect>, METH_O | METH_CLASS,
     "connect($type, file, /)\n--\n\nThe cache that the owner of a PeerFile serves."},
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

bool is_cache(PyObject* object) { return PyObject_TypeCheck(object, &cache_type) != 0; }

std::shared_ptr<Store> own_store_of(PyObject* object) {
  if (!is_cache(object)) {
    PyErr_Format(PyExc_TypeError, "expected a CacheStore, not %.100s", Py_TYPE(object)->tp_name);
    return nullptr;
  }
  CacheSide side;
  if (!side_of(cache_of(object), &side)) return nullptr;
  if (side.own == nullptr) {
    PyErr_SetString(error_type(ErrorCode::kSharing), "the Cache is another process's");
  }
  return side.own;
}

bool side_of(CacheObject* self, CacheSide* side) {
  if (self->closed) {
    set_error(Status::error(ErrorCode::kClosed, "the Cache is closed"));
    return false;
  }
  Status status;
  if (self->remote == nullptr || !self->remote->is_of_this_process()) {
    if (self->store != nullptr) status = self->store->check_usable();
    if (self->store != nullptr && status.ok()) {
      side->own = self->store;
      return true;
    }
    // A forked child: its parent's, or what that had of another one's.
    const bool forked = self->store == nullptr || status.code() == ErrorCode::kForked;
    PeerFile* const peer = forked ? peer_of_child(self) : nullptr;
    if (PyErr_Occurred() != nullptr) return false;
    if (peer == nullptr) {
      if (status.ok()) status = self->remote->check_usable();
      return set_error(status) != nullptr;
    }
    auto remote = attach(*peer, self->remote != nullptr ? self->remote->id() : self->store->id());
    if (remote == nullptr) return false;
    // Another thread may have been faster.
    if (self->remote == nullptr || !self->remote->is_of_this_process()) self->remote.swap(remote);
  }
  status = self->remote->check_usable();
  if (!status.ok()) return set_error(status) != nullptr;
  side->remote = self->remote;
  return true;
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
