// Purpose: the native part of a Cache object, and what its methods have in common.
//
// Thread safety: with the GIL. No Python code runs between a look at the store and what is done with what it found.
#pragma once

#include <Python.h>

#include <memory>

#include "binding/cache_keys.h"
#include "binding/errors.h"
#include "cache/store.h"

namespace pgalloc::binding {

struct CacheObject {
  PyObject_HEAD PyObject* memory_file;  // nullptr once collected
  std::shared_ptr<cache::Store> store;
};

// That of a CacheStore that can be used; nullptr with an exception set for anything else.
CacheObject* checked_cache(PyObject* object);
inline CacheObject* cache_of(PyObject* self) { return reinterpret_cast<CacheObject*>(self); }

// So many seconds and more are for ever: some hundred years.
inline constexpr double kForEver = 3e9;

// A read-only memoryview of a value, whose hold it takes over. nullptr with an exception set.
// REQUIRES: its pages are not pending.
PyObject* view_of(const std::shared_ptr<cache::ValueSource>& source, Pages& pages,
                  const cache::HeldValue& value);
// The same, once the pages have come.
PyObject* awaited_view_of(CacheObject* self, const cache::HeldValue& value);

// The methods that run millions of times: cache_calls.cc.
PyObject* cache_get(PyObject* object, PyObject* key);
PyObject* cache_look_again(PyObject* object, PyObject* key);
PyObject* cache_put(PyObject* object, PyObject* const* args, Py_ssize_t count);

bool add_cache_value_type();
bool add_remote_cache_type(PyObject* module);
bool add_cache_type(PyObject* module);

}  // namespace pgalloc::binding
