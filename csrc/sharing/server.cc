#include "sharing/server.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <chrono>
#include <thread>

#include "os/path.h"
#include "os/retry.h"
#include "os/syscalls.h"
#include "sharing/broker.h"

namespace pgalloc {

using os::sys;

namespace {

// Other servers wait while it lives, so that what is looked at stays what it is. As far as the file
// system knows locks, and for two seconds: other programs that lock folders must not stop us.
class FolderLock {
 public:
  explicit FolderLock(const std::string& folder) {
    fd_ = os::retry_interrupted(
        [&] { return sys().open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0); });
    for (int i = 0; fd_ >= 0 && i < 2000; ++i) {
      if (sys().flock(fd_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  ~FolderLock() {
    if (fd_ < 0) return;
    sys().flock(fd_, LOCK_UN);  // a child that was forked meanwhile has the descriptor, too
    sys().close(fd_);
  }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int fd_ = -1;
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

}  // namespace

Result<std::unique_ptr<Server>> Server::create(const std::string& path, Scope scope) {
  if (path.size() >= sizeof sockaddr_un{}.sun_path) {
    return Status::error(ErrorCode::kOption,
                         "the path of a socket has 107 bytes at most, and this one has " +
                             std::to_string(path.size()) + ": " + path);
  }
  std::unique_ptr<Server> server(new Server(path));
  Status status = server->listen(std::move(scope));
  if (status.ok()) return server;
  server->closed_ = true;
  return status;
}

Status Server::bind(int* fd) {
  *fd = sys().listen_at(path_.data(), path_.size());
  int error = errno;
  if (*fd < 0 && error == EADDRINUSE && is_deserted(path_)) {
    sys().unlink(path_.c_str());
    *fd = sys().listen_at(path_.data(), path_.size());
    error = errno;
  }
  return *fd >= 0 ? Status() : Status::system_error(error, "bind");
}

Status Server::listen(Scope scope) {
  int fd = -1;
  {
    const FolderLock lock(os::folder_of(path_));
    PGALLOC_RETURN_IF_ERROR(bind(&fd));
    struct stat status{};
    if (sys().lstat(path_.c_str(), &status) != 0) {
      const int error = errno;
      sys().close(fd);
      sys().unlink(path_.c_str());
      return Status::system_error(error, "lstat");
    }
    identity_ = {status.st_dev, status.st_ino};
  }
  Result<uint64_t> number = Broker::instance().serve(fd, std::move(scope));
  if (!number.ok()) {
    remove_file();
    return std::move(number).status();
  }
  number_ = *number;
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
  Broker::instance().stop_serving(number_);
  remove_file();
}

}  // namespace pgalloc
