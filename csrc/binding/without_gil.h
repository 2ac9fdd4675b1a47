// Purpose: to let go of the GIL for a while.
//
// As py::gil_scoped_release, but a daemon thread that wants the GIL back after the interpreter has
// begun to end does not take the process down: CPython before 3.14 ends such a thread by unwinding
// its stack, which no destructor survives. It waits here for the end instead, as 3.14 has it.
#pragma once

#include <Python.h>

#include <chrono>
#include <thread>

namespace pgalloc::binding {

class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {  // an unwinding thread: that is no exception with an object to refer to
      while (true) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* const state_;
};

}  // namespace pgalloc::binding
