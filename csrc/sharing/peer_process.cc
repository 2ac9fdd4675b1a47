#include "sharing/peer_process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <string>
#include <utility>

#include "os/retry.h"
#include "os/syscalls.h"

namespace pgalloc {

using os::sys;

namespace {

#ifndef SO_PEERPIDFD
constexpr int SO_PEERPIDFD = 77;  // Linux 6.5
#endif

struct File {
  unsigned major = 0;
  unsigned minor = 0;
  uint64_t inode = 0;
};

enum class Maps { kUnreadable, kEmpty, kWithout, kWith };

// Looks for files in /proc/PID/maps, line by line.
Maps look_in_maps(pid_t pid, const std::vector<File>& files) {
  char path[32];
  std::snprintf(path, sizeof path, "/proc/%d/maps", static_cast<int>(pid));
  const int fd = os::retry_interrupted([&] { return sys().open(path, O_RDONLY | O_CLOEXEC, 0); });
  if (fd < 0) return errno == ENOENT || errno == ESRCH ? Maps::kEmpty : Maps::kUnreadable;
  std::string text;
  char piece[16384];
  auto found = Maps::kEmpty;
  while (found != Maps::kWith) {
    const ssize_t got =
        os::retry_interrupted([&] { return sys().read(fd, piece, sizeof piece); });
    if (got < 0) found = errno == ESRCH ? Maps::kEmpty : Maps::kUnreadable;
    if (got <= 0) break;
    if (found == Maps::kEmpty) found = Maps::kWithout;
    text.append(piece, static_cast<size_t>(got));
    size_t line = 0;
    for (size_t end; (end = text.find('\n', line)) != text.npos; line = end + 1) {
      File file;
      if (std::sscanf(text.c_str() + line, "%*x-%*x %*s %*x %x:%x %" SCNu64, &file.major,
                      &file.minor, &file.inode) != 3) {
        continue;
      }
      const bool one = std::any_of(files.begin(), files.end(), [&](const File& each) {
        return each.inode == file.inode && each.major == file.major && each.minor == file.minor;
      });
      if (one) found = Maps::kWith;
    }
    text.erase(0, line);
  }
  sys().close(fd);
  return found;
}

}  // namespace

PeerProcess::PeerProcess(int socket, pid_t pid) : pid_(pid) {
  socklen_t size = sizeof handle_;
  if (socket >= 0 && sys().getsockopt(socket, SO_PEERPIDFD, &handle_, &size) == 0) return;
  handle_ = pid_ > 0 ? sys().pidfd_open(pid_) : -1;
}

PeerProcess::PeerProcess(PeerProcess&& other) noexcept
    : pid_(other.pid_), handle_(std::exchange(other.handle_, -1)) {}

PeerProcess& PeerProcess::operator=(PeerProcess&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(handle_, other.handle_);
  return *this;
}

PeerProcess::~PeerProcess() {
  if (handle_ >= 0) sys().close(handle_);
}

// Without a handle it has ended, or cannot be watched: then its socket has to do.
bool PeerProcess::alive() const {
  if (handle_ < 0) return false;
  pollfd waits{handle_, POLLIN, 0};
  return sys().poll(&waits, 1, 0) <= 0;
}

bool PeerProcess::may_see(const std::vector<int>& files) const {
  if (!alive()) return false;
  std::vector<File> wanted;
  for (const int fd : files) {
    struct stat status{};
    if (sys().fstat(fd, &status) != 0) return true;
    wanted.push_back({major(status.st_dev), minor(status.st_dev), status.st_ino});
  }
  // Nothing is mapped by a process that is on its way out; or its first thread has ended only.
  return look_in_maps(pid_, wanted) != Maps::kWithout;
}

}  // namespace pgalloc
