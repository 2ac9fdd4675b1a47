// Purpose: the native part of a Cache object, and what its methods have in common. In the process that made the cache it is a
// Store; elsewhere what that process has of it: so everything is the same in all of them.
//
// Thread safety: with the GIL. No Python code runs between a look at the store and what is done with what it found.
//
// Invariant: `remote` is null in the process that made the cache. In a forked child it is made when it is first needed.
#pragma once

#include <Python.h>

#include <memory>

#include "binding/cache_keys.h"
#include "binding/errors.h"
#include "cache/remote_store.h"
#include "cache/store.h"

namespace pgalloc::binding {

struct CacheObject {
  PyObject_HEAD PyObject* memory_file;  // a MemoryFile or a PeerFile; nullptr once collected
  std::shared_ptr<cache::Store>
      store;  // its parent's in a forked child, for its number; null in one that connected
  std::shared_ptr<cache::RemoteStore> remote;
  bool closed;
};

bool is_cache(PyObject* object);
inline CacheObject* cache_of(PyObject* self) { return reinterpret_cast<CacheObject*>(self); }
// The store of a CacheStore that can be used, in the process that made it; nullptr with an exception set for anything else.
std::shared_ptr<cache::Store> own_store_of(PyObject* object);

// Who does what is wanted of the cache: one of the two.
struct CacheSide {
  std::shared_ptr<cache::Store> own;
  std::shared_ptr<cache::RemoteStore> remote;
};
// False with an exception set if it cannot be used. A forked child attaches to its parent's cache.
bool side_of(CacheObject* self, CacheSide* side);

// So many seconds and more are for ever: some hundred years.
inline constexpr double kForEver = 3e9;
// For how long a value is to last, in nanoseconds; 0 for ever. False with an exception set.
bool as_lifetime(PyObject* seconds, uint64_t* lasts_ns);

// A read-only memoryview of a value, whose hold it takes over. nullptr with an exception set.
// REQUIRES: its pages are not pending.
PyObject* view_of(const std::shared_ptr<cache::ValueSource>& source, Pages& pages,
                  const cache::HeldValue& value);
// The same, once the pages have come.
PyObject* view_on(CacheObject* self, const CacheSide& side, const cache::HeldValue& value);

// The methods that run millions of times: cache_calls.cc.
PyObject* cache_get(PyObject* object, PyObject* key);
PyObject* cache_look_again(PyObject* object, PyObject* key);
PyObject* cache_put(PyObject* object, PyObject* const* args, Py_ssize_t count);
PyObject* cache_increment(PyObject* object, PyObject* const* args, Py_ssize_t count);

bool add_cache_value_type();
bool add_cache_type(PyObject* module);

}  // namespace pgalloc::binding
