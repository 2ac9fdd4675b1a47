#include "imageio/stream_file.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>

#include "os/retry.h"
#include "os/syscalls.h"

namespace pgalloc {

using os::retry_interrupted;
using os::sys;

Result<int> open_stream(const std::string& path) {
  constexpr int kFlags = O_WRONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
  const int fd = retry_interrupted([&] { return sys().open(path.c_str(), kFlags, 0); });
  if (fd < 0) return Status::system_error(errno, "open");
  return fd;
}

Result<bool> wait_for_stream(int fd, StreamEvent event,
                             std::chrono::steady_clock::time_point deadline) {
  using std::chrono::milliseconds;
  pollfd file{fd, static_cast<short>(event == StreamEvent::kReadable ? POLLIN : POLLOUT), 0};
  constexpr milliseconds kLongest{60'000};
  const auto now = std::chrono::steady_clock::now();
  const milliseconds left = deadline <= now ? milliseconds(0)
                            : deadline - now >= kLongest
                                ? kLongest
                                : std::chrono::ceil<milliseconds>(deadline - now);
  const int ready = sys().poll(&file, 1, static_cast<int>(left.count()));
  if (ready < 0 && errno != EINTR) return Status::system_error(errno, "poll");
  return ready > 0;
}

}  // namespace pgalloc
