// Who listens, and who is let in. The rest is in peers.cc.

#include "sharing/peers.h"

#include <errno.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>
#include <utility>

#include "os/syscalls.h"

namespace pgalloc {

using os::sys;

namespace {

constexpr int kAcceptsAtOnce = 16;

}  // namespace

size_t Peers::channels_max() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return 1 << 20;
  return std::max<size_t>(limit.rlim_cur / 2, 8);
}

Status Peers::start() {
  if (secret_ == wire::Secret{}) PGALLOC_RETURN_IF_ERROR(wire::make_secret(&secret_));
  if (name_.empty()) {
    wire::Secret random{};
    PGALLOC_RETURN_IF_ERROR(wire::make_secret(&random));
    char name[64];
    uint64_t unique = 0;
    std::memcpy(&unique, random.data(), sizeof unique);
    std::snprintf(name, sizeof name, "pgalloc-%d-%016llx", static_cast<int>(::getpid()),
                  static_cast<unsigned long long>(unique));
    name_ = std::string(1, '\0') + name;
  }
  if (poller_.fd() < 0) PGALLOC_RETURN_IF_ERROR(poller_.start());
  if (own_listener_ != 0) return {};
  const int fd = sys().listen_at(name_.data(), name_.size());
  if (fd < 0) {
    const int error = errno;
    if (error == EADDRINUSE) name_.clear();  // taken meanwhile: another one, next time
    return Status::system_error(error, "bind");
  }
  Endpoint socket(fd);
  if (!socket.open()) return Status::system_error(errno, "fstat");
  Result<uint64_t> number = add_listener(std::move(socket), {});
  if (!number.ok()) return std::move(number).status();
  own_listener_ = *number;
  open_door();
  return {};
}

// Without a door, processes of other network namespaces are told that they cannot connect.
void Peers::open_door() {
  door_.close();
  if (door_listener_ != 0) remove_listener(std::exchange(door_listener_, 0));
  Endpoint socket = door_.open();
  if (!socket.open()) return;
  const Result<uint64_t> number = add_listener(std::move(socket), {});
  if (!number.ok()) return door_.close();
  door_listener_ = *number;
}

Result<uint64_t> Peers::add_listener(Endpoint socket, Scope scope) {
  if (!socket.intact()) return Status::system_error(EBADF, "fstat");
  // A peer that was ready to be accepted may be gone by then.
  if (sys().set_nonblocking(socket.fd()) != 0) return Status::system_error(errno, "fcntl");
  auto listener = std::make_unique<Listener>();
  listener->socket = std::move(socket);
  listener->scope = std::move(scope);
  const uint64_t number = next_number();
  listeners_.emplace(number, std::move(listener));
  wake();
  return number;
}

void Peers::remove_listener(uint64_t number) {
  const auto found = listeners_.find(number);
  if (found == listeners_.end()) return;
  Listener& listener = *found->second;
  poller_.unwatch(listener.socket, &listener.registered);
  listener.socket.close();
  let_go_.listeners.insert(listeners_.extract(found));
}

void Peers::accept(Listener& listener, SteadyTime now) try {
  if (!listener.socket.intact()) return;
  for (int i = 0; i < kAcceptsAtOnce; ++i) {
    const int fd = sys().accept(listener.socket.fd());
    if (fd >= 0) {
      let_in(Endpoint(fd), listener.scope, now);
      continue;
    }
    const bool nothing = errno == EAGAIN || errno == EINTR || errno == ECONNABORTED;
    if (!nothing) accept_again_ = now + accept_pause;  // no descriptor is left, or no memory
    return;
  }
} catch (const std::bad_alloc&) {
  accept_again_ = now + accept_pause;
}

void Peers::let_in(Endpoint socket, const Scope& scope, SteadyTime now) {
  if (!socket.open() || channels_.size() >= channels_max()) return;
  ucred peer{};
  socklen_t size = sizeof peer;
  if (sys().getsockopt(socket.fd(), SO_PEERCRED, &peer, &size) != 0) return;
  const uint64_t number = next_number();
  const pid_t pid = peer.pid > 0 ? peer.pid : kUnseen;
  auto session = std::make_unique<Session>(number, offers_, scope, pid, peer.uid);
  if (pid == kUnseen) session->process = PeerProcess::handle_of(socket.fd());
  if (!join_others(*session)) return;
  auto connected = std::make_unique<Connected>(number, std::move(socket), std::move(session),
                                               /*greeted=*/false, now);
  ungreeted_.push_back(number);
  add(number, std::move(connected));
}

// It is counted with the other connections of its process, also those that have ended and by which
// something is held. False if there are too many: a quarter of all for a process, half for those that are
// not seen from here, and cannot be told apart.
bool Peers::join_others(Session& session) const {
  Session* other = nullptr;
  size_t unseen = 0;
  const auto look = [&](Session& each) {
    if (each.pid != session.pid || each.uid != session.uid) return;
    if (session.pid == kUnseen) {
      ++unseen;
    } else if (!each.born_connected()) {
      other = &each;
    }
  };
  for (const auto& [number, connected] : channels_) look(connected->channel.session());
  departed_.visit(look);
  if (unseen >= channels_max() / 2) return false;
  if (other == nullptr) {
    const uint64_t known =
        session.pid == kUnseen ? 0 : offers_.process_of(session.pid, session.uid);
    if (known != 0) session.count_on(known);
    return true;
  }
  if (other->usage()->connections >= channels_max() / 4) return false;
  session.count_with(*other);
  return true;
}

}  // namespace pgalloc
