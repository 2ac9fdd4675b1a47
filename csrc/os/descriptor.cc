#include "os/descriptor.h"

#include <errno.h>
#include <sys/stat.h>

#include "os/syscalls.h"

namespace pgalloc::os {

Descriptor::Descriptor(int fd) {
  if (fd < 0 || recognise(fd)) return;
  const int error = errno;
  if (error != EBADF) sys().close(fd);
  errno = error;
}

Descriptor Descriptor::adopt(int fd) {
  Descriptor descriptor;
  if (fd >= 0) (void)descriptor.recognise(fd);
  return descriptor;
}

bool Descriptor::recognise(int fd) {
  struct stat status{};
  if (sys().fstat(fd, &status) != 0) return false;
  fd_ = fd;
  device_ = status.st_dev;
  inode_ = status.st_ino;
  return true;
}

Descriptor::Descriptor(Descriptor&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), device_(other.device_), inode_(other.inode_) {}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  if (this == &other) return *this;
  close();
  fd_ = std::exchange(other.fd_, -1);
  device_ = other.device_;
  inode_ = other.inode_;
  return *this;
}

bool Descriptor::intact() const { return fd_ >= 0 && is_same_file(fd_); }

bool Descriptor::is_same_file(int fd) const {
  struct stat status{};
  // Only EBADF says that it is closed; the kernel may be short of something.
  if (sys().fstat(fd, &status) != 0) return errno != EBADF;
  return status.st_ino == inode_ && status.st_dev == device_;
}

void Descriptor::close() {
  if (intact()) sys().close(fd_);
  fd_ = -1;
}

}  // namespace pgalloc::os
