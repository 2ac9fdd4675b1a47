#include "sharing/peer_process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <string>
#include <string_view>
#include <system_error>

#include "os/retry.h"
#include "os/syscalls.h"

namespace pgalloc {

using os::sys;

namespace {

#ifndef SO_PEERPIDFD
constexpr int SO_PEERPIDFD = 77;  // Linux 6.5
#endif

enum class Maps { kUnreadable, kGone, kEmpty, kRead };

struct Closer {
  const int fd;
  ~Closer() { sys().close(fd); }
};

// A line of /proc/PID/maps: addresses, permissions, offset, device, inode, path. False if it is none.
bool parse_line(std::string_view line, FileIdentity* file) {
  for (int field = 0; field < 3; ++field) {
    const size_t space = line.find(' ');
    if (space == line.npos) return false;
    line.remove_prefix(space + 1);
  }
  const char* const end = line.end();
  const auto colon = std::from_chars(line.begin(), end, file->major, 16);
  if (colon.ec != std::errc() || colon.ptr == end || *colon.ptr != ':') return false;
  const auto space = std::from_chars(colon.ptr + 1, end, file->minor, 16);
  if (space.ec != std::errc() || space.ptr == end || *space.ptr != ' ') return false;
  return std::from_chars(space.ptr + 1, end, file->inode).ec == std::errc();
}

// Looks for files in /proc/PID/maps, line by line: which are there.
Maps look_in_maps(pid_t pid, const std::vector<FileIdentity>& files, const std::atomic<bool>* stop,
                  std::vector<bool>* are_there) {
  char path[32];
  std::snprintf(path, sizeof path, "/proc/%d/maps", static_cast<int>(pid));
  const int fd = os::retry_interrupted([&] { return sys().open(path, O_RDONLY | O_CLOEXEC, 0); });
  if (fd < 0) return errno == ENOENT || errno == ESRCH ? Maps::kGone : Maps::kUnreadable;
  const Closer closer{fd};
  std::string text;
  char piece[16384];
  auto maps = Maps::kEmpty;
  for (size_t left = files.size(); left > 0;) {
    if (stop != nullptr && *stop) return Maps::kUnreadable;
    const ssize_t got = os::retry_interrupted([&] { return sys().read(fd, piece, sizeof piece); });
    if (got < 0) maps = errno == ESRCH ? Maps::kGone : Maps::kUnreadable;
    if (got <= 0) break;
    maps = Maps::kRead;
    text.append(piece, static_cast<size_t>(got));
    size_t line = 0;
    for (size_t end; (end = text.find('\n', line)) != text.npos; line = end + 1) {
      FileIdentity file;
      if (!parse_line(std::string_view(text).substr(line, end - line), &file)) continue;
      for (size_t i = 0; i < files.size(); ++i) {
        const FileIdentity& each = files[i];
        if ((*are_there)[i] || each.inode != file.inode || each.major != file.major ||
            each.minor != file.minor) {
          continue;
        }
        (*are_there)[i] = true;
        --left;
      }
    }
    text.erase(0, line);
  }
  return maps;
}

// Whether /proc is there, and its numbers are those of this process's PID namespace: in a container it
// may be that of another one. "Pid:" is this process's own number there.
bool proc_is_ours() {
  const int fd = os::retry_interrupted(
      [&] { return sys().open("/proc/self/status", O_RDONLY | O_CLOEXEC, 0); });
  if (fd < 0) return false;
  const Closer closer{fd};
  char text[1024];
  const ssize_t got = os::retry_interrupted([&] { return sys().read(fd, text, sizeof text); });
  const std::string_view status(text, got > 0 ? static_cast<size_t>(got) : 0);
  constexpr std::string_view kField = "\nPid:\t";
  const size_t field = status.find(kField);
  if (field == status.npos) return false;
  pid_t pid = 0;
  const char* const number = status.begin() + field + kField.size();
  return std::from_chars(number, status.end(), pid).ec == std::errc() && pid == ::getpid();
}

enum class Life { kAlive, kEnded, kUnknown };

Life life_of(int pidfd) {
  pollfd waits{pidfd, POLLIN, 0};
  const int ready = sys().poll(&waits, 1, 0);
  if (ready < 0) return Life::kUnknown;
  return ready > 0 && (waits.revents & POLLIN) != 0 ? Life::kEnded : Life::kAlive;
}

Life life_of_process(pid_t pid) {
  const int pidfd = sys().pidfd_open(pid);
  if (pidfd < 0) return errno == ESRCH ? Life::kEnded : Life::kUnknown;
  const Closer closer{pidfd};
  return life_of(pidfd);
}

}  // namespace

FileIdentity FileIdentity::of(int fd) {
  constexpr long kTmpfs = 0x01021994;      // TMPFS_MAGIC
  constexpr long kHugetlbfs = 0x958458f6;  // HUGETLBFS_MAGIC
  struct stat status{};
  struct statfs system{};
  if (sys().fstat(fd, &status) != 0) return {};
  // An anonymous device: of a file system that has several, maps shows another one.
  const bool known =
      major(status.st_dev) != 0 ||
      (sys().fstatfs(fd, &system) == 0 && (system.f_type == kTmpfs || system.f_type == kHugetlbfs));
  return {major(status.st_dev), minor(status.st_dev), status.st_ino, known};
}

os::Descriptor PeerProcess::handle_of(int socket) {
  int handle = -1;
  socklen_t size = sizeof handle;
  if (sys().getsockopt(socket, SO_PEERPIDFD, &handle, &size) != 0) return {};
  return os::Descriptor(handle);
}

PeerProcess PeerProcess::behind(int socket) {
  ucred its{};
  socklen_t size = sizeof its;
  const bool known = sys().getsockopt(socket, SO_PEERCRED, &its, &size) == 0 && its.pid > 0;
  return PeerProcess(known ? its.pid : kUnseen, handle_of(socket));
}

// A handle is believed first: its number may be another process's by now.
bool PeerProcess::has_ended() const {
  if (handle_.intact()) return life_of(handle_.fd()) == Life::kEnded;
  return pid_ != kUnseen && life_of_process(pid_) == Life::kEnded;
}

bool PeerProcess::may_see(const std::vector<FileIdentity>& files) const {
  const std::vector<bool> seen = may_see_each(files);
  return std::find(seen.begin(), seen.end(), true) != seen.end();
}

std::vector<bool> PeerProcess::may_see_each(const std::vector<FileIdentity>& files,
                                            const std::atomic<bool>* stop) const {
  const auto all = [&](bool seen) { return std::vector<bool>(files.size(), seen); };
  if (files.empty() || pid_ == 0) return all(false);
  if (pid_ == kUnseen) return all(!has_ended());
  const Life life = life_of_process(pid_);
  if (life == Life::kEnded) return all(false);
  std::vector<bool> seen = all(false);
  const Maps maps = look_in_maps(pid_, files, stop, &seen);
  // Alive, but its maps have gone: its end is seen by the next look.
  if (maps == Maps::kGone) return all(life == Life::kAlive || !proc_is_ours());
  // Nothing is mapped by a process that is on its way out; or its first thread has ended only.
  if (maps != Maps::kRead || !proc_is_ours()) return all(true);
  for (size_t i = 0; i < files.size(); ++i) seen[i] = seen[i] || !files[i].known;
  return seen;
}

}  // namespace pgalloc
