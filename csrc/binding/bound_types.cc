#include "binding/bound_types.h"

#include <exception>
#include <new>
#include <stdexcept>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "binding/arguments.h"
#include "binding/guarded.h"

namespace pgalloc::binding {

namespace py = pybind11;

namespace {

// In the place of PyType_GenericAlloc where pybind11 calls it and does not look at the result. (It is
// not inherited: classes written in Python have Python's.)
PyObject* allocate_or_throw(PyTypeObject* type, Py_ssize_t items) {
  PyObject* const self = PyType_GenericAlloc(type, items);
  if (self == nullptr) throw py::error_already_set();
  return self;
}

void free_unfinished(PyObject* self) {
  PyTypeObject* const type = Py_TYPE(self);
  if (PyType_IS_GC(type)) PyObject_GC_UnTrack(self);
  type->tp_free(self);
  Py_DECREF(type);
}

// The C++ types behind a class. What pybind11 has begun to note of a class when memory runs out is wrong,
// and would stay.
const std::vector<py::detail::type_info*>& bound_bases(PyTypeObject* type) try {
  return py::detail::all_type_info(type);
} catch (...) {
  py::detail::with_internals(
      [type](auto& internals) { internals.registered_types_py.erase(type); });
  throw;
}

// In the place of pybind11's.
PyObject* new_instance(PyTypeObject* type, PyObject*, PyObject*) {
  PyObject* self = nullptr;
  try {
    if (bound_bases(type).empty()) {
      PyErr_Format(PyExc_TypeError, "cannot make an instance of %.200s", type->tp_name);
      return nullptr;
    }
    self = type->tp_alloc(type, 0);
    if (self == nullptr) return nullptr;
    reinterpret_cast<py::detail::instance*>(self)->allocate_layout();
    return self;
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    if (PyErr_Occurred() == nullptr) PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  if (self != nullptr) free_unfinished(self);
  return nullptr;
}

PyObject* refuse_to_pickle(PyObject* self, PyObject*) {
  PyErr_Format(PyExc_TypeError, "cannot pickle '%.200s' object", Py_TYPE(self)->tp_name);
  return nullptr;
}

PyMethodDef reduce_ex = {"__reduce_ex__", refuse_to_pickle, METH_O, nullptr};

// --- Functions -----------------------------------------------------------------------------------

using Dispatcher = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*);
Dispatcher dispatch_of_pybind11 = nullptr;

// pybind11 makes a TypeError of the MemoryError that an answer could not be made for.
void prefer_memory_error() {
  if (PyErr_Occurred() == nullptr || PyErr_ExceptionMatches(PyExc_TypeError) == 0) return;
  PyObject* type = nullptr;
  PyObject* value = nullptr;
  PyObject* traceback = nullptr;
  PyErr_Fetch(&type, &value, &traceback);
  PyErr_NormalizeException(&type, &value, &traceback);
  PyObject* const cause = PyException_GetCause(value);
  const bool of_memory = cause != nullptr && PyErr_GivenExceptionMatches(cause, PyExc_MemoryError);
  Py_XDECREF(cause);
  if (!of_memory) return PyErr_Restore(type, value, traceback);
  Py_XDECREF(type);
  Py_XDECREF(value);
  Py_XDECREF(traceback);
  PyErr_NoMemory();
}

PyObject* dispatch(PyObject* function, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  // It makes some objects outside of what it guards.
  PyObject* const answer =
      guard([&] { return dispatch_of_pybind11(function, args, count, names); });
  if (answer == nullptr) prefer_memory_error();
  return answer;
}

void harden_function(PyObject* object) {
  if (PyInstanceMethod_Check(object)) object = PyInstanceMethod_GET_FUNCTION(object);
  if (!PyCFunction_Check(object)) return;
  PyObject* const record = PyCFunction_GET_SELF(object);
  if (record == nullptr || py::detail::function_record_ptr_from_PyObject(record) == nullptr) return;
  PyMethodDef* const definition = reinterpret_cast<PyCFunctionObject*>(object)->m_ml;
  if (definition->ml_meth == erased(dispatch)) return;  // under another name
  dispatch_of_pybind11 =
      reinterpret_cast<Dispatcher>(reinterpret_cast<void (*)()>(definition->ml_meth));
  definition->ml_meth = erased(dispatch);
}

// False with an exception set.
bool harden_attribute(PyObject* value) {
  harden_function(value);
  if (!PyObject_TypeCheck(value, &PyProperty_Type)) return true;
  for (const char* const name : {"fget", "fset"}) {
    PyObject* const function = PyObject_GetAttrString(value, name);
    if (function == nullptr) return false;
    harden_function(function);
    Py_DECREF(function);
  }
  return true;
}

// --- Types ---------------------------------------------------------------------------------------

using InitInstance = void (*)(py::detail::instance*, const void*);
std::unordered_map<const py::detail::type_info*, InitInstance> init_instances;

// After there was no memory to register an object, or for its holder: the C++ object is destroyed once, with
// the object of Python's or by whatever holds it already.
void give_up(py::detail::instance* object, py::detail::value_and_holder& part, const void* holder) {
  const bool registered = part.instance_registered();
  if (registered) py::detail::deregister_instance(object, part.value_ptr(), part.type);
  bool destroyed = registered;  // by the holder that could not be made
  if (holder == nullptr && !registered) {
    part.set_instance_registered(true);  // so that nothing is registered
    try {
      init_instances.at(part.type)(object, nullptr);
      part.type->dealloc(part);
    } catch (const std::bad_alloc&) {
      destroyed = true;
    }
  }
  part.set_instance_registered(false);
  if (destroyed || holder != nullptr) part.value_ptr() = nullptr;
}

// In the place of pybind11's, which registers the object before a holder has the C++ object. Without memory
// for that it would free what `holder` still has, or free it without destroying it.
void init_instance(py::detail::instance* object, const void* holder) {
  for (py::detail::value_and_holder& part : py::detail::values_and_holders(object)) {
    if (!part || part.holder_constructed()) continue;
    try {
      init_instances.at(part.type)(object, holder);
    } catch (...) {
      give_up(object, part, holder);
      throw;
    }
  }
}

bool harden(PyTypeObject* type) {
  if (type->tp_alloc == allocate_or_throw) return true;  // under another name
  type->tp_alloc = allocate_or_throw;
  py::detail::type_info* const info = py::detail::get_type_info(type);
  init_instances[info] = std::exchange(info->init_instance, init_instance);
  type->tp_new = new_instance;
  type->tp_basicsize += sizeof(void*);  // invariant 2: same_slots_added() of CPython looks at this
  PyObject* name = nullptr;
  PyObject* value = nullptr;
  Py_ssize_t position = 0;
  while (PyDict_Next(type->tp_dict, &position, &name, &value) != 0) {
    if (!harden_attribute(value)) return false;
  }
  PyObject* const method = PyDescr_NewMethod(type, &reduce_ex);
  if (method == nullptr) return false;
  const int result =
      PyObject_SetAttrString(reinterpret_cast<PyObject*>(type), "__reduce_ex__", method);
  Py_DECREF(method);
  return result == 0;
}

}  // namespace

bool harden_bound_types(PyObject* module) {
  auto* const base = reinterpret_cast<PyTypeObject*>(py::detail::get_internals().instance_base);
  base->tp_new = new_instance;  // other modules have it too; they lose nothing
  PyObject* name = nullptr;
  PyObject* value = nullptr;
  Py_ssize_t position = 0;
  while (PyDict_Next(PyModule_GetDict(module), &position, &name, &value) != 0) {
    harden_function(value);
    auto* const type = reinterpret_cast<PyTypeObject*>(value);
    if (PyModule_CheckExact(value) && !harden_bound_types(value)) return false;
    if (PyType_Check(value) && PyType_IsSubtype(type, base) && !harden(type)) return false;
  }
  return true;
}

void translate_memory_errors() {
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      std::rethrow_exception(std::move(thrown));
    } catch (const std::runtime_error& error) {
      // Of an error of ours for which there is no memory only pybind11's text says so.
      const std::string_view text = error.what();
      if (text.find("REPLACED BY MemoryError") != std::string_view::npos) PyErr_NoMemory();
      const bool known = PyErr_Occurred() != nullptr && PyErr_ExceptionMatches(PyExc_MemoryError);
      if (!known) throw;
    }
  });
}

}  // namespace pgalloc::binding
