#include "sharing/server.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <chrono>
#include <thread>

#include "os/descriptor.h"
#include "os/retry.h"
#include "os/syscalls.h"
#include "sharing/brief_files.h"
#include "sharing/broker.h"

namespace pgalloc {

using os::sys;

namespace {

constexpr int kServeMax_ms = 2000;
constexpr int kCloseMax_ms = 200;

// Other servers wait while it lives, so that what is looked at stays what it is. As far as the file
// system knows locks, and for some milliseconds: other programs that lock folders must not stop us.
class FolderLock {
 public:
  FolderLock(const std::string& folder, int milliseconds) {
    fd_ = os::retry_interrupted(
        [&] { return sys().open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0); });
    for (int i = 0; fd_ >= 0 && i < milliseconds; ++i) {
      held_ = sys().flock(fd_, LOCK_EX | LOCK_NB) == 0;
      others_ = !held_ && errno == EWOULDBLOCK;
      if (!others_) break;
      (void)sys().poll(nullptr, 0, 1);
    }
  }
  ~FolderLock() {
    if (fd_ < 0) return;
    if (held_) sys().flock(fd_, LOCK_UN);  // a child that was forked meanwhile has it, too
    sys().close(fd_);
  }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

  bool held() const { return held_; }
  bool others() const { return others_; }  // it is another process's, or was all the time

 private:
  int fd_ = -1;
  bool held_ = false;
  bool others_ = false;
};

// Whether it is a socket that was left behind by a process that is gone.
bool is_deserted(const std::string& path) {
  struct stat status{};
  if (sys().lstat(path.c_str(), &status) != 0 || !S_ISSOCK(status.st_mode)) return false;
  const int probe = sys().connect_to(path.data(), path.size());
  if (probe < 0) return errno == ECONNREFUSED;
  sys().close(probe);
  return false;
}

// What fails once may succeed the next time.
void remove_at(const std::string& path) {
  for (int i = 0; i < 3; ++i) {
    if (sys().unlink(path.c_str()) == 0 || errno == ENOENT) return;
  }
}

// A file that is removed at the end, unless it is to stay.
class Removal {
 public:
  explicit Removal(const std::string& path) : path_(path) {}
  ~Removal() {
    if (!stays_) remove_at(path_);
  }
  Removal(const Removal&) = delete;
  Removal& operator=(const Removal&) = delete;

  void let_it_stay() { stays_ = true; }

 private:
  const std::string& path_;
  bool stays_ = false;
};

}  // namespace

Result<std::unique_ptr<Server>> Server::create(const std::string& path, Scope scope) {
  if (path.size() >= sizeof sockaddr_un{}.sun_path) {
    return Status::error(ErrorCode::kOption,
                         "the path of a socket has 107 bytes at most, and this one has " +
                             std::to_string(path.size()) + ": " + path);
  }
  std::unique_ptr<Server> server(new Server(path));
  PGALLOC_RETURN_IF_ERROR(server->listen(std::move(scope)));
  return server;
}

Status Server::listen(Scope scope) {
  const FolderLock lock(folder_, kServeMax_ms);
  if (lock.held()) return listen_locked(std::move(scope));
  return listen_unlocked(std::move(scope),
                         lock.others()
                             ? "bind (the folder is locked by another process, and what was "
                               "left there is only removed under the lock)"
                             : "bind (the folder cannot be locked, and what was left there "
                               "is only removed under a lock)");
}

Status Server::listen_locked(Scope scope) {
  int fd = sys().listen_at(path_.data(), path_.size());
  int error = errno;
  if (fd < 0 && error == EADDRINUSE && is_deserted(path_)) {
    sys().unlink(path_.c_str());
    fd = sys().listen_at(path_.data(), path_.size());
    error = errno;
  }
  if (fd < 0) return Status::system_error(error, "bind");
  Removal file(path_);
  Status status = hand_over(fd, path_, std::move(scope));
  if (status.ok()) file.let_it_stay();
  return status;
}

// Between bind() and listen() a server that has the lock would take the socket for one that was left
// behind. So it gets its path when it listens; if the path is free, which link() finds out. `why` is what
// is said of a socket that may have been left there.
Status Server::listen_unlocked(Scope scope, const char* why) {
  const os::Descriptor folder(sys().open(folder_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC, 0));
  if (!folder.open()) return Status::system_error(errno, "open");
  remove_left_files(folder_);
  Result<std::string> name = name_of_brief_file();
  if (!name.ok()) return std::move(name).status();
  // The folder's own path may leave no room for the name in the address of a socket.
  const std::string file = "/proc/self/fd/" + std::to_string(folder.fd()) + "/" + *name;
  const int fd = sys().listen_at(file.data(), file.size());
  if (fd < 0) {
    return Status::system_error(
        errno, errno == ENOENT ? "bind (through /proc, without the folder's lock)" : "bind");
  }
  const Removal removal(file);
  PGALLOC_RETURN_IF_ERROR(hand_over(fd, file, std::move(scope)));
  const os::Descriptor socket(sys().open(file.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC, 0));
  if (socket.open() && sys().link_descriptor(socket.fd(), path_.c_str()) == 0) return {};
  const int error = errno == EEXIST ? EADDRINUSE : errno;
  closed_ = true;
  Broker::instance().stop_serving(number_);
  return Status::system_error(error, is_deserted(path_) ? why : "bind");
}

// To the broker, once it is known which file is the socket's.
Status Server::hand_over(int fd, const std::string& file, Scope scope) {
  struct stat status{};
  if (sys().lstat(file.c_str(), &status) != 0) {
    const int error = errno;
    sys().close(fd);
    return Status::system_error(error, "lstat");
  }
  identity_ = {status.st_dev, status.st_ino};
  Result<uint64_t> number = Broker::instance().serve(fd, std::move(scope));
  if (!number.ok()) return std::move(number).status();
  number_ = *number;
  closed_ = false;
  return {};
}

// What fails once may succeed the next time; a file that stays is taken over by the next server there.
void Server::remove_file() const {
  for (int i = 0; i < 3; ++i) {
    struct stat status{};
    if (sys().lstat(path_.c_str(), &status) != 0) {
      if (errno == ENOENT) return;
      continue;
    }
    if (status.st_ino != identity_.inode || status.st_dev != identity_.device) return;
    if (sys().unlink(path_.c_str()) == 0) return;
  }
}

void Server::close() {
  if (closed_.exchange(true) || generation_ != process_generation()) return;
  {
    // No lock is needed as long as it listens (invariant 3). A program may have closed the socket.
    const FolderLock lock(folder_, kCloseMax_ms);
    if (lock.held() || !is_deserted(path_)) remove_file();
  }
  Broker::instance().stop_serving(number_);
}

}  // namespace pgalloc
