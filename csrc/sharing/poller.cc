#include "sharing/poller.h"

#include <errno.h>

#include <utility>

#include "os/syscalls.h"

namespace pgalloc {

using os::sys;

Poller::~Poller() {
  if (epoll_ >= 0 && whose_epoll() == Whose::kOurs) sys().close(epoll_);
}

// All epolls look alike to fstat(); but ours knows what it watches.
Poller::Whose Poller::whose_epoll() const {
  bool none = true;
  for (const Endpoint* const witness : {&wake_, &waker_}) {
    epoll_event event{};
    event.events = witness == &wake_ ? uint32_t{EPOLLIN} : 0;
    if (sys().epoll_ctl(epoll_, EPOLL_CTL_MOD, witness->fd(), &event) == 0) return Whose::kOurs;
    none = none && (errno == EBADF || errno == EINVAL || errno == ENOENT || errno == EPERM);
  }
  return none ? Whose::kNotOurs : Whose::kUnknown;
}

bool Poller::ready() {
  const bool whole = epoll_ >= 0 && waker_.open() && !lost_;
  if (whole && whose_epoll() != Whose::kNotOurs) return true;
  return start().ok();
}

// Else a wake gets lost.
void Poller::look() { lost_ = lost_ || !wake_.intact() || !waker_.intact(); }

Status Poller::start() {
  int pair[2];
  if (sys().socketpair(pair) != 0) return Status::system_error(errno, "socketpair");
  Endpoint here(pair[0]);
  Endpoint there(pair[1]);
  if (!here.open() || !there.open()) return Status::system_error(errno, "fstat");
  const int epoll = sys().epoll_create();
  if (epoll < 0) return Status::system_error(errno, "epoll_create1");
  epoll_event wakes{};
  wakes.events = EPOLLIN;
  epoll_event nothing{};  // the second witness
  if (sys().epoll_ctl(epoll, EPOLL_CTL_ADD, here.fd(), &wakes) != 0 ||
      sys().epoll_ctl(epoll, EPOLL_CTL_ADD, there.fd(), &nothing) != 0) {
    Status status = Status::system_error(errno, "epoll_ctl");
    sys().close(epoll);
    return status;
  }
  if (epoll_ >= 0 && whose_epoll() == Whose::kOurs) sys().close(epoll_);
  epoll_ = epoll;
  wake_ = std::move(here);
  waker_ = std::move(there);
  lost_ = false;
  ++generation_;
  return {};
}

bool Poller::watch(uint64_t number, const Endpoint& socket, uint32_t events, Registration* known) {
  const bool registered = known->generation == generation_;
  if (registered && known->events == events) return true;
  if (!socket.intact()) return false;  // its owner finds out when it looks
  epoll_event event{};
  event.events = events;
  event.data.u64 = number;
  int result =
      sys().epoll_ctl(epoll_, registered ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, socket.fd(), &event);
  if (result != 0 && (errno == EEXIST || errno == ENOENT)) {
    result =
        sys().epoll_ctl(epoll_, registered ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, socket.fd(), &event);
  }
  if (result != 0) return false;
  *known = {generation_, events};
  return true;
}

void Poller::unwatch(const Endpoint& socket, Registration* known) {
  if (known->generation != generation_ || !socket.intact()) return;
  epoll_event event{};
  if (sys().epoll_ctl(epoll_, EPOLL_CTL_DEL, socket.fd(), &event) == 0) *known = {};
}

// What cannot be sent is said by hanging up, which takes nothing; there is a new pair then.
void Poller::wake() {
  int error = 0;
  if (waker_.send("!", {}, -1, &error) != Endpoint::Io::kDone) waker_.close();
}

void Poller::take_wakes() {
  char byte = 0;
  size_t got = 0;
  int error = 0;
  while (wake_.receive(&byte, 1, &got, &error) == Endpoint::Io::kDone) {
  }
}

}  // namespace pgalloc
