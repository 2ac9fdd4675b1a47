#include "binding/fork_hooks.h"

#include <pthread.h>

#include <cstdint>

#include "base/process_generation.h"
#include "binding/without_gil.h"
#include "os/thread.h"
#include "sharing/forks.h"

namespace pgalloc::binding {
namespace {

// Only a thread with the GIL uses it.
struct Hooks {
  PyObject* park = nullptr;
  PyObject* resume = nullptr;
  PyObject* begin_child = nullptr;
  unsigned long main_thread = 0;
  uint32_t generation = 0;  // that Python knows of
};
Hooks hooks;

constexpr int kTries = 100;

bool is_finalizing() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

void call(PyObject* function) {
  PyObject* const result = PyObject_CallNoArgs(function);
  if (result == nullptr) PyErr_WriteUnraisable(function);
  Py_XDECREF(result);
}

// What `attempt` gives, once it is not interrupted: a new reference; nullptr if it always raises. What it
// has raised last is reported.
template <class Attempt>
PyObject* insist(PyObject* context, Attempt attempt) {
  PyObject* type = nullptr;
  PyObject* value = nullptr;
  PyObject* traceback = nullptr;
  PyObject* result = attempt();
  for (int i = 1; i < kTries && result == nullptr; ++i) {
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    PyErr_Fetch(&type, &value, &traceback);
    result = attempt();
  }
  if (result == nullptr) PyErr_Clear();
  if (type != nullptr) {
    PyErr_Restore(type, value, traceback);
    PyErr_WriteUnraisable(context);
  }
  return result;
}

struct Errand {
  PyObject* function;
  pid_t thread_id = 0;
};

void* run_errand(void* argument) {
  auto* const errand = static_cast<Errand*>(argument);
  errand->thread_id = os::thread_id();
  const PyGILState_STATE gil = PyGILState_Ensure();
  call(errand->function);
  PyGILState_Release(gil);
  return nullptr;
}

// Other threads than the main one run no signal handlers of Python's. (They may take signals: threads that
// `resume` starts have their mask, and what those start.)
void call_undisturbed(PyObject* function) {
  if (function == nullptr) return;
  if (PyThread_get_thread_ident() == hooks.main_thread && !is_finalizing()) {
    const WithoutGil release;
    Errand errand{function};
    pthread_t thread;
    if (::pthread_create(&thread, nullptr, run_errand, &errand) == 0) {
      ::pthread_join(thread, nullptr);
      os::wait_until_gone(errand.thread_id);
      return;
    }
  }
  call(function);
}

}  // namespace

bool set_fork_hooks(PyObject* park, PyObject* resume, PyObject* begin_child) {
  PyObject* const threading = PyImport_ImportModule("threading");
  if (threading == nullptr) return false;
  PyObject* const thread = PyObject_CallMethod(threading, "main_thread", nullptr);
  Py_DECREF(threading);
  if (thread == nullptr) return false;
  PyObject* const ident = PyObject_GetAttrString(thread, "ident");
  Py_DECREF(thread);
  if (ident == nullptr) return false;
  hooks.main_thread = PyLong_AsUnsignedLong(ident);
  Py_DECREF(ident);
  if (PyErr_Occurred() != nullptr) return false;
  // For good: a fork may come while the interpreter ends.
  hooks.park = Py_NewRef(park);
  hooks.resume = Py_NewRef(resume);
  hooks.begin_child = Py_NewRef(begin_child);
  hooks.generation = process_generation();
  return true;
}

void before_fork() {
  after_fork_in_child();
  call_undisturbed(hooks.park);
  const WithoutGil release;
  Forks::park_threads();
}

void after_fork_in_parent() {
  {
    const WithoutGil release;
    Forks::resume_threads();
  }
  call_undisturbed(hooks.resume);
}

void after_fork_in_child() {
  if (hooks.generation == process_generation() || hooks.begin_child == nullptr) return;
  hooks.generation = process_generation();
  hooks.main_thread = PyThread_get_thread_ident();
  PyObject* const parents =
      insist(hooks.begin_child, [] { return PyObject_CallNoArgs(hooks.begin_child); });
  if (parents == nullptr) return;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(parents); ++i) {
    PyObject* const each = PyList_GET_ITEM(parents, i);
    Py_XDECREF(insist(each, [&] { return PyObject_CallMethod(each, "reset_in_child", nullptr); }));
  }
  Py_DECREF(parents);
}

}  // namespace pgalloc::binding
