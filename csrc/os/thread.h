// Purpose: what the core asks of the kernel about its threads: to know when one that was joined is
// really gone, and to run one promptly.
//
// Thread safety: any thread.
//
// pthread_join() returns when the thread has let go of its memory, a moment before the kernel takes
// it off the list of threads. CPython counts that list after fork() and warns when it finds more
// than one, so code that stops threads for a fork has to wait for that moment too.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <chrono>

namespace pgalloc::os {

pid_t thread_id();
// How long all threads of this process have run.
std::chrono::nanoseconds process_time();

// While it lives, this thread takes no signals that come from outside; nor do threads that it starts
// then, for good. Programs (Python above all) want theirs in threads of their own.
class WithoutSignals {
 public:
  WithoutSignals();
  ~WithoutSignals();
  WithoutSignals(const WithoutSignals&) = delete;
  WithoutSignals& operator=(const WithoutSignals&) = delete;

 private:
  sigset_t before_;
};

// Whether no thread of this process has the id any more.
bool is_gone(pid_t thread_id);
// Returns when that is so, or after a second.
void wait_until_gone(pid_t thread_id);

// Asks the kernel to run this thread soon after it wakes up, for little work at a time. As far as it
// lets us: a negative nice value needs CAP_SYS_NICE, a short time slice Linux 6.12.
void run_promptly();

}  // namespace pgalloc::os
