// Purpose: the only door to the kernel. The core calls every system call through this table, so a
// test can make call N of a name fail with any errno in the very binary that ships.
//
// Thread safety: any thread. The table in force is one atomic pointer; swapping it does not wait
// for calls under way.
//
// Conventions: entries take and return what the kernel's own do; errno is set on failure. To add a
// call, add a line to PGALLOC_SYSCALLS: the table, its fault-injecting twin and the list of names
// that tests iterate over all follow from it.
#pragma once

#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace pgalloc::os {

// What cachestat(2) (Linux 6.5) reports, in pages. glibc 2.36 has no declaration for it.
struct CacheStat {
  uint64_t cached = 0;
  uint64_t dirty = 0;
  uint64_t under_writeback = 0;
  uint64_t evicted = 0;  // shmem: pages in swap
  uint64_t recently_evicted = 0;
};

// The request of the PAGEMAP_SCAN ioctl (Linux 6.7), struct pm_scan_arg in the kernel's linux/fs.h.
struct PageRegion {
  uint64_t start = 0;
  uint64_t end = 0;
  uint64_t categories = 0;
};
struct PagemapScan {
  uint64_t size = sizeof(PagemapScan);
  uint64_t flags = 0;
  uint64_t start = 0;
  uint64_t end = 0;
  uint64_t walk_end = 0;  // set by the kernel: how far it got
  uint64_t regions = 0;   // address of PageRegion[region_count]
  uint64_t region_count = 0;
  uint64_t pages_max = 0;
  uint64_t inverted_categories = 0;
  uint64_t required_categories = 0;
  uint64_t any_of_categories = 0;
  uint64_t returned_categories = 0;
};
inline constexpr uint64_t kPageIsPresent = uint64_t{1} << 3;
inline constexpr uint64_t kPageIsHuge = uint64_t{1} << 6;  // mapped by a huge page

// X(result type, name, parameters, arguments). The result -1 means failure for all of them.
#define PGALLOC_SYSCALLS(X)                                                                       \
  X(int, open, (const char* path, int flags, mode_t mode), (path, flags, mode))                   \
  X(int, close, (int fd), (fd))                                                                   \
  X(int, duplicate, (int fd), (fd))                                                               \
  X(int, unlink, (const char* path), (path))                                                      \
  X(int, link_descriptor, (int fd, const char* path), (fd, path))                                 \
  X(int, rename, (const char* from, const char* to), (from, to))                                  \
  X(int, fsync, (int fd), (fd))                                                                   \
  X(int, memfd_create, (const char* name, unsigned flags), (name, flags))                         \
  X(int, add_seals, (int fd, int seals), (fd, seals))                                             \
  X(int, fchmod, (int fd, mode_t mode), (fd, mode))                                               \
  X(int, fchown, (int fd, uid_t user, gid_t group), (fd, user, group))                            \
  X(int, lstatx, (const char* path, struct statx* out), (path, out))                              \
  X(ssize_t, lgetxattr, (const char* path, const char* name, void* value, size_t size),           \
    (path, name, value, size))                                                                    \
  X(int, fsetxattr, (int fd, const char* name, const void* value, size_t size),                   \
    (fd, name, value, size))                                                                      \
  X(int, fremovexattr, (int fd, const char* name), (fd, name))                                    \
  X(int, ftruncate, (int fd, off_t length), (fd, length))                                         \
  X(int, fallocate, (int fd, int mode, off_t offset, off_t length), (fd, mode, offset, length))   \
  X(int, fstat, (int fd, struct stat* out), (fd, out))                                            \
  X(int, fstatfs, (int fd, struct statfs* out), (fd, out))                                        \
  X(off_t, lseek, (int fd, off_t offset, int whence), (fd, offset, whence))                       \
  X(ssize_t, pread, (int fd, void* data, size_t size, off_t offset), (fd, data, size, offset))    \
  X(ssize_t, pwrite, (int fd, const void* data, size_t size, off_t offset),                       \
    (fd, data, size, offset))                                                                     \
  X(int, cachestat, (int fd, uint64_t offset, uint64_t length, CacheStat* out),                   \
    (fd, offset, length, out))                                                                    \
  X(int, pagemap_scan, (int fd, PagemapScan* request), (fd, request))                             \
  X(void*, mmap, (void* address, size_t length, int protection, int flags, int fd, off_t offset), \
    (address, length, protection, flags, fd, offset))                                             \
  X(int, munmap, (void* address, size_t length), (address, length))                               \
  X(int, madvise, (void* address, size_t length, int advice), (address, length, advice))          \
  X(int, mincore, (void* address, size_t length, unsigned char* out), (address, length, out))     \
  X(int, mlock, (const void* address, size_t length), (address, length))                          \
  X(int, munlock, (const void* address, size_t length), (address, length))                        \
  X(ssize_t, read, (int fd, void* data, size_t size), (fd, data, size))                           \
  X(ssize_t, write, (int fd, const void* data, size_t size), (fd, data, size))                    \
  X(int, eventfd, (unsigned value, int flags), (value, flags))                                    \
  X(int, watch_writes, (), ())                                                                    \
  X(int, watch_writes_to, (int fd, const char* path), (fd, path))                                 \
  X(int, watch_folder, (int fd, const char* path), (fd, path))                                    \
  X(int, poll, (struct pollfd * files, nfds_t count, int timeout_ms), (files, count, timeout_ms)) \
  X(ssize_t, getrandom, (void* data, size_t size, unsigned flags), (data, size, flags))           \
  X(int, socketpair, (int* fds), (fds))                                                           \
  X(int, listen_at, (const char* name, size_t size), (name, size))                                \
  X(int, connect_to, (const char* name, size_t size), (name, size))                               \
  X(int, socket, (), ())                                                                          \
  X(int, connect, (int fd, const char* name, size_t size), (fd, name, size))                      \
  X(int, set_send_timeout, (int fd, int milliseconds), (fd, milliseconds))                        \
  X(int, lstat, (const char* path, struct stat* out), (path, out))                                \
  X(ssize_t, getdents, (int fd, void* entries, size_t size), (fd, entries, size))                 \
  X(int, flock, (int fd, int operation), (fd, operation))                                         \
  X(int, accept, (int fd), (fd))                                                                  \
  X(int, set_nonblocking, (int fd), (fd))                                                         \
  X(int, set_receive_timeout, (int fd, int milliseconds), (fd, milliseconds))                     \
  X(int, unread_bytes, (int fd), (fd))                                                            \
  X(int, pass_credentials, (int fd), (fd))                                                        \
  X(int, pass_pidfd, (int fd, int on), (fd, on))                                                  \
  X(ssize_t, recvmsg, (int fd, struct msghdr* message, int flags), (fd, message, flags))          \
  X(ssize_t, sendmsg, (int fd, const struct msghdr* message, int flags), (fd, message, flags))    \
  X(int, getsockopt, (int fd, int name, void* value, socklen_t* size), (fd, name, value, size))   \
  X(int, epoll_create, (), ())                                                                    \
  X(int, epoll_ctl, (int fd, int operation, int file, struct epoll_event* event),                 \
    (fd, operation, file, event))                                                                 \
  X(int, epoll_wait, (int fd, struct epoll_event* events, int count, int timeout_ms),             \
    (fd, events, count, timeout_ms))                                                              \
  X(int, pidfd_open, (pid_t process), (process))

struct Syscalls {
#define PGALLOC_MEMBER(result, name, parameters, arguments) result(*name) parameters;
  PGALLOC_SYSCALLS(PGALLOC_MEMBER)
#undef PGALLOC_MEMBER
};

namespace internal {
extern std::atomic<const Syscalls*> table_in_force;
}

inline const Syscalls& sys() { return *internal::table_in_force.load(std::memory_order_acquire); }
const Syscalls& kernel();         // the real calls
void use(const Syscalls& table);  // puts another table in force

}  // namespace pgalloc::os
