#include "binding/fork_hooks.h"

#include <semaphore.h>

#include <cerrno>
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
  PyObject* start_thread = nullptr;  // _thread.start_new_thread
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

// A call in a thread of its own. Python makes the thread: one of C would need PyGILState_Ensure(), which
// holds a lock of the interpreter without the GIL, and in a child that another thread forks just then
// (before Python 3.12) that lock would stay locked.
class Errand {
 public:
  explicit Errand(PyObject* function) : function_(function) { sem_init(&done_, 0, 0); }
  ~Errand() { sem_destroy(&done_); }
  Errand(const Errand&) = delete;
  Errand& operator=(const Errand&) = delete;

  // False, with nothing done, if there is no thread to be had.
  bool run(PyObject* start_thread) {
    static PyMethodDef method{"run_errand", &Errand::run_in_thread, METH_NOARGS, nullptr};
    PyObject* const self = PyCapsule_New(this, nullptr, nullptr);
    PyObject* const body = self == nullptr ? nullptr : PyCFunction_New(&method, self);
    PyObject* const started =
        body == nullptr ? nullptr : PyObject_CallFunction(start_thread, "O()", body);
    Py_XDECREF(body);
    Py_XDECREF(self);
    if (started == nullptr) {
      PyErr_Clear();
      return false;
    }
    Py_DECREF(started);
    const WithoutGil release;
    while (sem_wait(&done_) != 0 && errno == EINTR) {
    }
    os::wait_until_gone(thread_id_);
    return true;
  }

 private:
  static PyObject* run_in_thread(PyObject* capsule, PyObject*) {
    auto* const errand = static_cast<Errand*>(PyCapsule_GetPointer(capsule, nullptr));
    errand->thread_id_ = os::thread_id();
    call(errand->function_);
    sem_post(&errand->done_);
    Py_RETURN_NONE;
  }

  PyObject* const function_;
  sem_t done_;
  pid_t thread_id_ = 0;
};

// Other threads than the main one run no signal handlers of Python's. (They may take signals: threads that
// `resume` starts have their mask, and what those start.)
void call_undisturbed(PyObject* function) {
  if (function == nullptr) return;
  if (PyThread_get_thread_ident() == hooks.main_thread && !is_finalizing()) {
    if (Errand(function).run(hooks.start_thread)) return;
  }
  call(function);
}

}  // namespace

bool set_fork_hooks(PyObject* park, PyObject* resume, PyObject* begin_child,
                    PyObject* start_thread) {
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
  hooks.start_thread = Py_NewRef(start_thread);
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
