#include "os/transfer.h"

#include <errno.h>

#include "os/retry.h"
#include "os/syscalls.h"

namespace pgalloc::os {

Result<size_t> read_at(int fd, uint64_t offset, char* data, size_t size) {
  size_t done = 0;
  while (done < size) {
    const ssize_t count = retry_interrupted([&] {
      return sys().pread(fd, data + done, size - done, static_cast<off_t>(offset + done));
    });
    if (count < 0) return Status::system_error(errno, "pread");
    if (count == 0) break;
    done += static_cast<size_t>(count);
  }
  return done;
}

Status write_at(int fd, uint64_t offset, const char* data, size_t size) {
  for (size_t done = 0; done < size;) {
    const ssize_t count = retry_interrupted([&] {
      return sys().pwrite(fd, data + done, size - done, static_cast<off_t>(offset + done));
    });
    if (count < 0) return Status::system_error(errno, "pwrite");
    if (count == 0) return Status::system_error(EIO, "pwrite");
    done += static_cast<size_t>(count);
  }
  return {};
}

}  // namespace pgalloc::os
