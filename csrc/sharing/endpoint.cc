#include "sharing/endpoint.h"

#include <errno.h>
#include <sys/socket.h>

#include <cstring>
#include <utility>

#include "os/retry.h"
#include "os/syscalls.h"

namespace pgalloc {

using os::sys;

namespace {

constexpr int kHandleOfSender = 4;  // SCM_PIDFD, which older headers lack

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

// SO_COOKIE (Linux 4.12): socket(7). No two sockets of one boot have the same one.
Endpoint::Endpoint(int fd) : os::Descriptor(fd) {
  socklen_t size = sizeof cookie_;
  if (!open() || sys().getsockopt(fd, SO_COOKIE, &cookie_, &size) != 0) cookie_ = 0;
}

bool Endpoint::intact() const {
  if (cookie_ == 0 || !open()) return os::Descriptor::intact();
  uint64_t cookie = 0;
  socklen_t size = sizeof cookie;
  if (sys().getsockopt(fd(), SO_COOKIE, &cookie, &size) == 0) return cookie == cookie_;
  return errno != EBADF && errno != ENOTSOCK;  // the kernel may be short of something
}

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

bool Endpoint::name_senders() {
  names_senders_ = intact() && sys().pass_credentials(fd()) == 0;
  wants_handle_ = names_senders_ && sys().pass_pidfd(fd(), 1) == 0;
  return names_senders_;
}

Endpoint::Io Endpoint::receive(char* data, size_t size, size_t* got, Sender* sender, int* error) {
  iovec part{data, size};
  // Room for the credentials, which come first, and for the handle. What a peer has sent along instead of
  // that is closed.
  alignas(cmsghdr) char room[CMSG_SPACE(sizeof(ucred)) + CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (names_senders_) {
    message.msg_control = room;
    message.msg_controllen = wants_handle_ ? sizeof room : CMSG_SPACE(sizeof(ucred));
  }
  *sender = {};
  const Io result = receive(MSG_DONTWAIT, &message, got, error);
  if (result != Io::kDone) return result;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET) continue;
    if (header->cmsg_type == SCM_CREDENTIALS) {
      ucred credentials{};
      std::memcpy(&credentials, CMSG_DATA(header), sizeof credentials);
      sender->pid = credentials.pid;
    } else if (header->cmsg_len >= CMSG_LEN(sizeof(int))) {
      int descriptor = -1;
      std::memcpy(&descriptor, CMSG_DATA(header), sizeof descriptor);
      if (header->cmsg_type == kHandleOfSender && descriptor >= 0) {
        sender->handle = os::Descriptor(descriptor);
      } else if (header->cmsg_type == SCM_RIGHTS) {
        sys().close(descriptor);
      }
    }
  }
  if (std::exchange(wants_handle_, false)) (void)sys().pass_pidfd(fd(), 0);
  return result;
}

Endpoint::Io Endpoint::receive(char* data, size_t size, Received* received, int* error) const {
  return receive_with(MSG_DONTWAIT, data, size, received, error);
}

Endpoint::Io Endpoint::wait(char* data, size_t size, Received* received, int* error) const {
  return receive_with(0, data, size, received, error);
}

bool Endpoint::set_timeout(std::chrono::milliseconds longest) const {
  return intact() && sys().set_receive_timeout(fd(), static_cast<int>(longest.count())) == 0;
}

bool Endpoint::all_is_read() const { return intact() && sys().unread_bytes(fd()) == 0; }

Endpoint::Io Endpoint::receive_with(int flags, char* data, size_t size, Received* received,
                                    int* error) const {
  constexpr size_t kMax = 4;  // the kernel closes those that are more
  iovec part{data, size};
  alignas(cmsghdr) char room[CMSG_SPACE(kMax * sizeof(int))];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = room;
  message.msg_controllen = sizeof room;
  const Io result = receive(flags, &message, &received->size, error);
  if (result != Io::kDone) return result;
  received->truncated = (message.msg_flags & MSG_TRUNC) != 0;
  int count = 0;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t size_of_all = header->cmsg_len - CMSG_LEN(0);
    for (size_t at = 0; at < size_of_all; at += sizeof(int)) {
      int descriptor;
      std::memcpy(&descriptor, CMSG_DATA(header) + at, sizeof descriptor);
      if (count++ == 0) {
        received->descriptor = descriptor;
      } else {
        sys().close(descriptor);
      }
    }
  }
  if (count > 1) sys().close(std::exchange(received->descriptor, -1));
  received->lost_descriptor = count == 0 && (message.msg_flags & MSG_CTRUNC) != 0;
  return Io::kDone;
}

Endpoint::Io Endpoint::receive(int flags, msghdr* message, size_t* got, int* error) const {
  if (!intact()) return Io::kLost;
  ssize_t size = sys().recvmsg(fd(), message, flags | MSG_CMSG_CLOEXEC);
  // The other end was closed with something unread: this is said once, and before what it has sent.
  if (size < 0 && errno == ECONNRESET) {
    size = sys().recvmsg(fd(), message, flags | MSG_CMSG_CLOEXEC);
  }
  if (size < 0) return outcome(errno, error);
  if (size == 0) return Io::kEnded;  // no packet of ours is empty
  *got = static_cast<size_t>(size);
  return Io::kDone;
}

}  // namespace pgalloc
