#include "sharing/connecting.h"

#include <errno.h>
#include <pthread.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <list>
#include <optional>
#include <utility>

#include "base/mutex.h"
#include "base/process_generation.h"
#include "os/descriptor.h"
#include "os/syscalls.h"

namespace pgalloc {

using os::sys;

namespace {

struct Sockets {
  Mutex mu{LockRank::kOwnerLink};
  std::list<os::Descriptor> open GUARDED_BY(mu);
};

// Never destroyed: threads may connect while the program ends.
Sockets& sockets() {
  static Sockets& its = *new Sockets;
  return its;
}

// Without the ranks: other handlers of the same fork hold locks, too.
void lock_for_fork() NO_THREAD_SAFETY_ANALYSIS { sockets().mu.lock_unranked(); }
void unlock_in_parent() NO_THREAD_SAFETY_ANALYSIS { sockets().mu.unlock_unranked(); }
void close_in_child() NO_THREAD_SAFETY_ANALYSIS {
  sockets().open.clear();
  sockets().mu.unlock_unranked();
}

// A socket while it is being connected.
class Socket {
 public:
  Socket() = default;
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  ~Socket() {
    if (node_.empty() && !forked()) {
      MutexLock lock(sockets().mu);
      node_.splice(node_.begin(), sockets().open, at_);
      node_.clear();
    }
  }

  Status open() {
    MutexLock lock(sockets().mu);
    const int fd = sys().socket();
    if (fd < 0) return Status::system_error(errno, "socket");
    *at_ = os::Descriptor(fd);
    if (!at_->open()) return Status::system_error(errno, "fstat");
    sockets().open.splice(sockets().open.begin(), node_);
    return {};
  }
  // REQUIRES: it is open, and not forked().
  int fd() const { return at_->fd(); }
  // Whether this is a child by now: a signal handler may fork. Then the socket is closed already.
  bool forked() const { return generation_ != process_generation(); }

 private:
  const uint32_t generation_ = process_generation();
  std::list<os::Descriptor> node_{1};  // empty once it is among all
  const std::list<os::Descriptor>::iterator at_ = node_.begin();
};

Status no_owner(const std::string& shown) {
  return Status::error(ErrorCode::kOwnerGone, "no owner of pages listens at " + shown);
}

// Nothing if a signal handler has forked: this is the child.
std::optional<Status> connect(const Socket& socket, const std::string& name,
                              const std::string& shown, const OwnerLink::Patience& patience) {
  // One that is always interrupted is reported as the failure it is.
  constexpr int kAttempts = 1000;
  for (int attempt = 1;; ++attempt) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(
        patience.deadline - std::chrono::steady_clock::now());
    // It waits for an owner that is busy: one that does not wait is refused when many come at once.
    const auto longest = std::clamp<int64_t>(left.count(), 1, INT32_MAX);
    if (sys().set_send_timeout(socket.fd(), static_cast<int>(longest)) != 0) {
      return Status::system_error(errno, "setsockopt");
    }
    if (sys().connect(socket.fd(), name.data(), name.size()) == 0) return Status();
    const int error = errno;
    if (error == ECONNREFUSED || error == ENOENT) return no_owner(shown);
    if (error == EAGAIN) {
      if (std::chrono::steady_clock::now() < patience.deadline) continue;
      return Status::error(ErrorCode::kSharing,
                           "the process that listens at " + shown +
                               " did not answer in time: it is stopped, or others come faster than "
                               "it answers");
    }
    if (error != EINTR || attempt == kAttempts) return Status::system_error(error, "connect");
    if (!patience.keep_waiting()) return Status::error(ErrorCode::kInterrupted, "");
    if (socket.forked()) return std::nullopt;
  }
}

}  // namespace

void Connecting::install() {
  static const bool once = [] {
    (void)sockets();
    ::pthread_atfork(lock_for_fork, unlock_in_parent, close_in_child);
    return true;
  }();
  (void)once;
}

Result<Connecting::Connected> Connecting::to(const std::string& name, const std::string& shown,
                                             uid_t user, const OwnerLink::Patience& patience) {
  for (;;) {
    Socket socket;
    PGALLOC_RETURN_IF_ERROR(socket.open());
    std::optional<Status> status = connect(socket, name, shown, patience);
    if (!status) continue;
    PGALLOC_RETURN_IF_ERROR(std::move(*status));
    ucred owner{};
    socklen_t size = sizeof owner;
    if (sys().getsockopt(socket.fd(), SO_PEERCRED, &owner, &size) != 0) {
      return Status::system_error(errno, "getsockopt");
    }
    if (owner.uid != user && owner.uid != 0) {
      return Status::error(ErrorCode::kSharing, "user " + std::to_string(owner.uid) +
                                                    " listens at " + shown + ", not user " +
                                                    std::to_string(user));
    }
    // A descriptor of its own: it is the link's before it is no longer this one's.
    Result<std::shared_ptr<OwnerLink>> link = OwnerLink::duplicate(socket.fd());
    if (!link.ok()) return std::move(link).status();
    return Connected{std::move(*link), owner.uid};
  }
}

}  // namespace pgalloc
