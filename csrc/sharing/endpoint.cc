#include "sharing/endpoint.h"

#include <errno.h>
#include <sys/socket.h>

#include <cstring>

#include "os/retry.h"
#include "os/syscalls.h"

namespace pgalloc {

using os::sys;

namespace {

// The descriptor was ours a moment ago: only the next look at it says that it is not (kLost).
Endpoint::Io outcome(int error_number, int* error) {
  *error = error_number;
  switch (error_number) {
    case EAGAIN:
    case EINTR:
      return Endpoint::Io::kAgain;
    case EPIPE:
    case ECONNRESET:
    case ENOTCONN:
      return Endpoint::Io::kEnded;
    default:
      return Endpoint::Io::kRefused;
  }
}

}  // namespace

Endpoint::Io Endpoint::send(std::string_view head, std::string_view rest, int descriptor,
                            int* error) const {
  if (!intact()) return Io::kLost;
  iovec parts[2] = {{const_cast<char*>(head.data()), head.size()},
                    {const_cast<char*>(rest.data()), rest.size()}};
  alignas(cmsghdr) char room[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = 2;
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
      [&] { return sys().sendmsg(fd(), &message, MSG_DONTWAIT | MSG_NOSIGNAL); });
  return sent >= 0 ? Io::kDone : outcome(errno, error);
}

Endpoint::Io Endpoint::receive(char* data, size_t size, size_t* got, int* error) const {
  if (!intact()) return Io::kLost;
  iovec part{data, size};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  const ssize_t received =
      os::retry_interrupted([&] { return sys().recvmsg(fd(), &message, MSG_DONTWAIT); });
  if (received < 0) return outcome(errno, error);
  if (received == 0) return Io::kEnded;  // no packet of ours is empty
  *got = static_cast<size_t>(received);
  return Io::kDone;
}

}  // namespace pgalloc
