// Purpose: Python's part of a fork, where no signal handler can interrupt it. Python runs the handlers
// of signals in its main thread, between any two instructions; one that raises would leave a hook in the
// middle. So hooks are native, and when the main thread forks, Python code runs in a thread that is made
// for it, while the main thread waits without the GIL. In a child that has just been forked there is
// only the main thread: there a call that was interrupted is made again.
#pragma once

#include <Python.h>

namespace pgalloc::binding {

// `park` and `resume` are called without arguments, before a fork and after it in the parent;
// `begin_child` gives a list of objects, of which each is told reset_in_child(). All but `park` and
// `resume` of one fork may be called again after an exception. `start_thread` is
// _thread.start_new_thread. False with an exception set.
bool set_fork_hooks(PyObject* park, PyObject* resume, PyObject* begin_child,
                    PyObject* start_thread);

// The hooks. They never raise.
void before_fork();
void after_fork_in_parent();
// Also at any time after a fork that has run no hooks: does nothing if there was none.
void after_fork_in_child();

}  // namespace pgalloc::binding
