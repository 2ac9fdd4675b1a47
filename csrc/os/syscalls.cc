#include "os/syscalls.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <cstring>

namespace pgalloc::os {
namespace {

#ifndef SYS_cachestat
#define SYS_cachestat 451  // the same number on every architecture
#endif

int cachestat_call(int fd, uint64_t offset, uint64_t length, CacheStat* out) {
  struct {
    uint64_t offset;
    uint64_t length;
  } range{offset, length};
  return static_cast<int>(::syscall(SYS_cachestat, fd, &range, out, 0));
}

int pagemap_scan_call(int fd, PagemapScan* request) {
  return ::ioctl(fd, _IOWR('f', 16, PagemapScan), request);
}

// A program may have closed its standard streams; what others say to one must not land in a file of
// ours that got its number.
constexpr int kFirstOfOurs = 3;
int above_standard(int fd) {
  if (fd < 0 || fd >= kFirstOfOurs) return fd;
  const int higher = ::fcntl(fd, F_DUPFD_CLOEXEC, kFirstOfOurs);
  const int error = errno;
  ::close(fd);
  return errno = error, higher;
}

int duplicate_call(int fd) { return ::fcntl(fd, F_DUPFD_CLOEXEC, kFirstOfOurs); }

// REQUIRES: flags have O_CLOEXEC.
int open_call(const char* path, int flags, mode_t mode) {
  return above_standard(::open(path, flags, mode));
}
int memfd_create_call(const char* name, unsigned flags) {
  return above_standard(::memfd_create(name, flags));
}
int eventfd_call(unsigned value, int flags) { return above_standard(::eventfd(value, flags)); }
int watch_writes_call() { return above_standard(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK)); }
int watch_writes_to_call(int fd, const char* path) {
  return ::inotify_add_watch(fd, path, IN_MODIFY);
}
// Tells of folders that are made in it. Returns a number that events have.
int watch_folder_call(int fd, const char* path) {
  return ::inotify_add_watch(fd, path, IN_CREATE | IN_ONLYDIR);
}

// Gives a file that was opened without a name (O_TMPFILE) one, as open(2) says.
int link_descriptor_call(int fd, const char* path) {
  char name[32];
  std::snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
  return ::linkat(AT_FDCWD, name, AT_FDCWD, path, AT_SYMLINK_FOLLOW);
}

int lstatx_call(const char* path, struct statx* out) {
  return ::statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, out);
}

int fsetxattr_call(int fd, const char* name, const void* value, size_t size) {
  return ::fsetxattr(fd, name, value, size, 0);
}

// Not libc's: the sanitizers' runtimes turn those two into nothing.
int mlock_call(const void* address, size_t length) {
  return static_cast<int>(::syscall(SYS_mlock, address, length));
}
int munlock_call(const void* address, size_t length) {
  return static_cast<int>(::syscall(SYS_munlock, address, length));
}

// Sockets of ours keep packets apart, and no other program inherits them.
constexpr int kSocketFlags = SOCK_CLOEXEC | SOCK_NONBLOCK;

int socketpair_call(int* fds) {
  int made[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | kSocketFlags, 0, made) != 0) return -1;
  fds[0] = above_standard(made[0]);
  fds[1] = above_standard(made[1]);
  if (fds[0] >= 0 && fds[1] >= 0) return 0;
  const int error = errno;
  for (const int fd : {fds[0], fds[1]}) {
    if (fd >= 0) ::close(fd);
  }
  return errno = error, -1;
}
// A socket with a name (unix(7)): a path, or behind a NUL one that ends with the socket. `use` makes
// something of it.
template <class Use>
int with_address(const char* name, size_t size, Use use) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (size > sizeof address.sun_path) return errno = ENAMETOOLONG, -1;
  std::memcpy(address.sun_path, name, size);
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + size);
  return use(reinterpret_cast<const sockaddr*>(&address), length);
}
template <class Use>
int socket_at(const char* name, size_t size, Use use) {
  return with_address(name, size, [&](const sockaddr* address, socklen_t length) {
    const int fd = above_standard(::socket(AF_UNIX, SOCK_SEQPACKET | kSocketFlags, 0));
    if (fd < 0 || use(fd, address, length)) return fd;
    const int error = errno;
    ::close(fd);
    return errno = error, -1;
  });
}

// For its user only: the socket's own mode is what bind() gives to its file.
int listen_at_call(const char* name, size_t size) {
  constexpr int kBacklog = 128;
  return socket_at(name, size, [](int fd, const sockaddr* address, socklen_t length) {
    return ::fchmod(fd, 0600) == 0 && ::bind(fd, address, length) == 0 &&
           ::listen(fd, kBacklog) == 0;
  });
}
int connect_to_call(const char* name, size_t size) {
  return socket_at(name, size, [](int fd, const sockaddr* address, socklen_t length) {
    return ::connect(fd, address, length) == 0;
  });
}
// One that waits: see set_send_timeout.
int socket_call() { return above_standard(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)); }
int connect_call(int fd, const char* name, size_t size) {
  return with_address(name, size, [fd](const sockaddr* address, socklen_t length) {
    return ::connect(fd, address, length);
  });
}
timeval as_timeval(int milliseconds) {
  return {milliseconds / 1000, suseconds_t{milliseconds % 1000} * 1000};
}
int set_send_timeout_call(int fd, int milliseconds) {
  const timeval timeout = as_timeval(milliseconds);
  return ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
}
int add_seals_call(int fd, int seals) { return ::fcntl(fd, F_ADD_SEALS, seals); }
int accept_call(int fd) { return above_standard(::accept4(fd, nullptr, nullptr, kSocketFlags)); }
int set_nonblocking_call(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  return flags < 0 ? -1 : ::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
}
// And makes it blocking.
int set_receive_timeout_call(int fd, int milliseconds) {
  const timeval timeout = as_timeval(milliseconds);
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0) return -1;
  return ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
}
// Of what was sent over a Unix socket, what the other side has not read yet: unix_ioctl() in Linux.
int unread_bytes_call(int fd) {
  int bytes = 0;
  return ::ioctl(fd, SIOCOUTQ, &bytes) < 0 ? -1 : bytes;
}
int pass_credentials_call(int fd) {
  const int on = 1;
  return ::setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
}
#ifndef SO_PASSPIDFD
constexpr int SO_PASSPIDFD = 76;  // Linux 6.5
#endif
int pass_pidfd_call(int fd, int on) {
  return ::setsockopt(fd, SOL_SOCKET, SO_PASSPIDFD, &on, sizeof on);
}
#ifndef SO_PEERPIDFD
constexpr int SO_PEERPIDFD = 77;  // Linux 6.5
#endif
// Of a process at the other end it makes a descriptor.
int getsockopt_call(int fd, int name, void* value, socklen_t* size) {
  if (::getsockopt(fd, SOL_SOCKET, name, value, size) != 0) return -1;
  if (name != SO_PEERPIDFD || *size != sizeof(int)) return 0;
  int handle = -1;
  std::memcpy(&handle, value, sizeof handle);
  handle = above_standard(handle);
  std::memcpy(value, &handle, sizeof handle);
  return handle < 0 ? -1 : 0;
}
constexpr int kScmPidfd = 4;  // Linux 6.5
// What it brings is numbered as all the rest; what cannot be is -1. REQUIRES: MSG_CMSG_CLOEXEC.
ssize_t recvmsg_call(int fd, msghdr* message, int flags) {
  const ssize_t size = ::recvmsg(fd, message, flags);
  if (size < 0) return size;
  for (cmsghdr* part = CMSG_FIRSTHDR(message); part != nullptr; part = CMSG_NXTHDR(message, part)) {
    if (part->cmsg_level != SOL_SOCKET ||
        (part->cmsg_type != SCM_RIGHTS && part->cmsg_type != kScmPidfd)) {
      continue;
    }
    for (size_t at = CMSG_LEN(0); at + sizeof(int) <= part->cmsg_len; at += sizeof(int)) {
      char* const place = reinterpret_cast<char*>(part) + at;
      int number = -1;
      std::memcpy(&number, place, sizeof number);
      number = above_standard(number);
      std::memcpy(place, &number, sizeof number);
    }
  }
  return size;
}
// glibc has getdents64() since 2.30: what it fills in is dirent64.
ssize_t getdents_call(int fd, void* entries, size_t size) {
  return ::syscall(SYS_getdents64, fd, entries, size);
}
int epoll_create_call() { return above_standard(::epoll_create1(EPOLL_CLOEXEC)); }
int pidfd_open_call(pid_t process) {
  return above_standard(static_cast<int>(::syscall(SYS_pidfd_open, process, 0)));
}

constexpr Syscalls kKernel = {
    .open = open_call,
    .close = ::close,
    .duplicate = duplicate_call,
    .unlink = ::unlink,
    .link_descriptor = link_descriptor_call,
    .rename = ::rename,
    .fsync = ::fsync,
    .memfd_create = memfd_create_call,
    .add_seals = add_seals_call,
    .fchmod = ::fchmod,
    .fchown = ::fchown,
    .lstatx = lstatx_call,
    .lgetxattr = ::lgetxattr,
    .fsetxattr = fsetxattr_call,
    .fremovexattr = ::fremovexattr,
    .ftruncate = ::ftruncate,
    .fallocate = ::fallocate,
    .fstat = ::fstat,
    .fstatfs = ::fstatfs,
    .lseek = ::lseek,
    .pread = ::pread,
    .pwrite = ::pwrite,
    .cachestat = cachestat_call,
    .pagemap_scan = pagemap_scan_call,
    .mmap = ::mmap,
    .munmap = ::munmap,
    .madvise = ::madvise,
    .mincore = ::mincore,
    .mlock = mlock_call,
    .munlock = munlock_call,
    .read = ::read,
    .write = ::write,
    .eventfd = eventfd_call,
    .watch_writes = watch_writes_call,
    .watch_writes_to = watch_writes_to_call,
    .watch_folder = watch_folder_call,
    .poll = ::poll,
    .getrandom = ::getrandom,
    .socketpair = socketpair_call,
    .listen_at = listen_at_call,
    .connect_to = connect_to_call,
    .socket = socket_call,
    .connect = connect_call,
    .set_send_timeout = set_send_timeout_call,
    .lstat = ::lstat,
    .getdents = getdents_call,
    .flock = ::flock,
    .accept = accept_call,
    .set_nonblocking = set_nonblocking_call,
    .set_receive_timeout = set_receive_timeout_call,
    .unread_bytes = unread_bytes_call,
    .pass_credentials = pass_credentials_call,
    .pass_pidfd = pass_pidfd_call,
    .recvmsg = recvmsg_call,
    .sendmsg = ::sendmsg,
    .getsockopt = getsockopt_call,
    .epoll_create = epoll_create_call,
    .epoll_ctl = ::epoll_ctl,
    .epoll_wait = ::epoll_wait,
    .pidfd_open = pidfd_open_call,
};

}  // namespace

namespace internal {
constinit std::atomic<const Syscalls*> table_in_force{&kKernel};
}

const Syscalls& kernel() { return kKernel; }
void use(const Syscalls& table) {
  internal::table_in_force.store(&table, std::memory_order_release);
}

}  // namespace pgalloc::os
