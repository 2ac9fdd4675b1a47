#include "sharing/endpoint.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cstring>
#include <utility>

#include "os/retry.h"
#include "os/syscalls.h"

namespace pgalloc {

using os::sys;

Endpoint::Endpoint(int fd) : fd_(fd) {
  struct stat status{};
  if (fd < 0 || sys().fstat(fd, &status) != 0) return;  // inode 0 is no socket's: never intact
  device_ = status.st_dev;
  inode_ = status.st_ino;
}

Endpoint::Endpoint(Endpoint&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), device_(other.device_), inode_(other.inode_) {}

Endpoint& Endpoint::operator=(Endpoint&& other) noexcept {
  if (this == &other) return *this;
  close();
  fd_ = std::exchange(other.fd_, -1);
  device_ = other.device_;
  inode_ = other.inode_;
  return *this;
}

bool Endpoint::intact() const {
  struct stat status{};
  return fd_ >= 0 && sys().fstat(fd_, &status) == 0 && status.st_ino == inode_ &&
         status.st_dev == device_ && S_ISSOCK(status.st_mode);
}

void Endpoint::close() {
  if (intact()) sys().close(fd_);
  fd_ = -1;
}

Endpoint::Io Endpoint::outcome(int error_number, int* error) const {
  *error = error_number;
  switch (error_number) {
    case EAGAIN:
    case EINTR: return Io::kAgain;
    case EPIPE:
    case ECONNRESET:
    case ENOTCONN: return Io::kEnded;
    case EBADF:
    case ENOTSOCK: return Io::kLost;
    default: return Io::kRefused;
  }
}

Endpoint::Io Endpoint::send(std::string_view packet, int descriptor, int* error) const {
  if (!intact()) return Io::kLost;
  iovec part{const_cast<char*>(packet.data()), packet.size()};
  alignas(cmsghdr) char room[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (descriptor >= 0) {
    message.msg_control = room;
    message.msg_controllen = sizeof room;
    cmsghdr* const rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(rights), &descriptor, sizeof(int));
  }
  const ssize_t sent = os::retry_interrupted(
      [&] { return sys().sendmsg(fd_, &message, MSG_DONTWAIT | MSG_NOSIGNAL); });
  return sent >= 0 ? Io::kDone : outcome(errno, error);
}

Endpoint::Io Endpoint::receive(char* data, size_t size, size_t* got, int* error) const {
  if (!intact()) return Io::kLost;
  iovec part{data, size};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  const ssize_t received =
      os::retry_interrupted([&] { return sys().recvmsg(fd_, &message, MSG_DONTWAIT); });
  if (received < 0) return outcome(errno, error);
  if (received == 0) return Io::kEnded;  // no packet of ours is empty
  *got = static_cast<size_t>(received);
  return Io::kDone;
}

}  // namespace pgalloc
