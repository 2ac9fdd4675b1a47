// Purpose: knowing when a thread that was joined is really gone.
//
// pthread_join() returns when the thread has let go of its memory, a moment before the kernel takes
// it off the list of threads. CPython counts that list after fork() and warns when it finds more
// than one, so whoever stops threads for a fork has to wait for that moment too.
#pragma once

#include <sys/types.h>

namespace pgalloc::os {

pid_t thread_id();
// Returns when no thread of this process has the id any more, or after a second.
void wait_until_gone(pid_t thread_id);

}  // namespace pgalloc::os
