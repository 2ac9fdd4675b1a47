// Purpose: files that take or give bytes in order only: devices, FIFOs, sockets, pipes.
//
// Thread safety: any thread.
#pragma once

#include <chrono>
#include <string>

#include "base/status.h"

namespace pgalloc {

// Opens one for writing, in non-blocking mode. Nothing is made or cut off, and no reader of a FIFO is
// waited for: without one, the call fails.
Result<int> open_stream(const std::string& path);

enum class StreamEvent { kReadable, kWritable };

// Whether reading or writing will not be refused for now (it may fail); false after the deadline, a
// minute, or a signal.
Result<bool> wait_for_stream(int fd, StreamEvent event,
                             std::chrono::steady_clock::time_point deadline);

}  // namespace pgalloc
