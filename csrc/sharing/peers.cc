#include "sharing/peers.h"

#include <errno.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <new>

#include "os/syscalls.h"

namespace pgalloc {

using os::sys;
using wire::Op;

namespace {

constexpr size_t kUngreetedMax = 64;
constexpr int kAcceptsAtOnce = 16;
constexpr size_t kRangesAtOnce = 512;  // given back of those who have ended
constexpr std::chrono::milliseconds kAcceptPause{100};
constexpr std::chrono::seconds kDescriptorsEvery{1};
constexpr std::chrono::milliseconds kFirstLook{1};
constexpr std::chrono::seconds kLongestLook{5};
constexpr int kIdleTimeoutMs = 1000;

// Half of the descriptors this process may have are for others.
size_t channels_max() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return 1 << 20;
  return std::max<size_t>(limit.rlim_cur / 2, 8);
}

Status no_memory() { return Status::error(ErrorCode::kNoMemory, "no memory is left"); }

bool equal(const wire::Secret& left, const wire::Secret& right) {
  unsigned difference = 0;  // all bytes are looked at, whichever differs
  for (size_t i = 0; i < left.size(); ++i) difference |= unsigned{left[i]} ^ right[i];
  return difference == 0;
}

}  // namespace

Peers::~Peers() {
  // In a forked child, too: its parent's sockets.
  if (epoll_ >= 0 && epoll_is_ours()) sys().close(epoll_);
  if (generation_ != process_generation()) return;
  for (const Offer& offer : offers_.take_all()) drop(offer);
}

// --- Listening -----------------------------------------------------------------------------------

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
  if (epoll_ < 0) PGALLOC_RETURN_IF_ERROR(rebuild());
  if (own_listener_ != 0) return {};
  const int fd = sys().listen_at(name_.data(), name_.size());
  if (fd < 0) {
    const int error = errno;
    if (error == EADDRINUSE) name_.clear();  // taken meanwhile: another one, next time
    return Status::system_error(error, "bind");
  }
  Result<uint64_t> number = add_listener(Endpoint(fd), {});
  if (!number.ok()) return std::move(number).status();
  own_listener_ = *number;
  return {};
}

// A new epoll, and a new way to wake its thread, with all that is to be watched.
Status Peers::rebuild() {
  int pair[2];
  if (sys().socketpair(pair) != 0) return Status::system_error(errno, "socketpair");
  Endpoint here(pair[0]);
  Endpoint there(pair[1]);
  const int epoll = sys().epoll_create();
  if (epoll < 0) return Status::system_error(errno, "epoll_create1");
  if (epoll_ >= 0 && epoll_is_ours()) sys().close(epoll_);
  epoll_ = epoll;
  wake_ = std::move(here);
  waker_ = std::move(there);
  for (auto& [number, listener] : listeners_) listener->registered = 0;
  for (auto& [number, channel] : channels_) {
    channel->registered = 0;
    touched_.push_back(number);
  }
  rebuild_ = false;
  uint32_t registered = 0;
  if (!watch(0, wake_, EPOLLIN, &registered)) rebuild_ = true;
  return {};
}

// One number of a descriptor looks like the next; but ours knows what it watches.
bool Peers::epoll_is_ours() {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = 0;
  return sys().epoll_ctl(epoll_, EPOLL_CTL_MOD, wake_.fd(), &event) == 0;
}

bool Peers::watch(uint64_t number, const Endpoint& socket, uint32_t wanted, uint32_t* registered) {
  // What is not watched for anything is still watched for its end.
  constexpr uint32_t kKnown = EPOLLHUP;
  if (*registered == (wanted | kKnown)) return true;
  epoll_event event{};
  event.events = wanted;
  event.data.u64 = number;
  int operation = *registered == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
  int result = sys().epoll_ctl(epoll_, operation, socket.fd(), &event);
  if (result != 0 && (errno == EEXIST || errno == ENOENT)) {
    operation = errno == EEXIST ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    result = sys().epoll_ctl(epoll_, operation, socket.fd(), &event);
  }
  if (result != 0) return false;
  *registered = wanted | kKnown;
  return true;
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
  if (listener.socket.intact()) {
    epoll_event event{};
    sys().epoll_ctl(epoll_, EPOLL_CTL_DEL, listener.socket.fd(), &event);
  }
  if (listener.scope.file != nullptr) let_go(std::move(listener.scope.file));
  listeners_.erase(found);
}

void Peers::wake() {
  int error = 0;
  (void)waker_.send("!", -1, &error);  // if it is full, the thread wakes up anyway
}

Status Peers::add_child(Endpoint socket, std::unique_ptr<Session> session) {
  if (!socket.intact()) return Status::system_error(EBADF, "fstat");
  auto channel = std::make_unique<Channel>(std::move(socket), std::move(session), /*greeted=*/true,
                                           std::chrono::steady_clock::now());
  const uint64_t number = next_number();
  touched_.push_back(number);
  channels_.emplace(number, std::move(channel));
  wake();
  return {};
}

void Peers::accept(uint64_t number, SteadyTime now) {
  const auto found = listeners_.find(number);
  if (found == listeners_.end() || !found->second->socket.intact()) return;
  Listener& listener = *found->second;
  for (int i = 0; i < kAcceptsAtOnce; ++i) {
    const int fd = sys().accept(listener.socket.fd());
    if (fd < 0) {
      const bool nothing = errno == EAGAIN || errno == EINTR || errno == ECONNABORTED;
      if (!nothing) accept_again_ = now + kAcceptPause;  // no descriptor is left, or no memory
      return;
    }
    Endpoint socket(fd);
    if (channels_.size() >= channels_max()) continue;
    ucred peer{};
    socklen_t size = sizeof peer;
    if (sys().getsockopt(fd, SO_PEERCRED, &peer, &size) != 0) continue;
    const uint64_t its_number = next_number();
    auto session =
        std::make_unique<Session>(its_number, offers_, listener.scope, peer.pid, peer.uid);
    ungreeted_.push_back(its_number);
    touched_.push_back(its_number);
    channels_.emplace(its_number, std::make_unique<Channel>(std::move(socket), std::move(session),
                                                            /*greeted=*/false, now));
  }
}

// --- Rounds --------------------------------------------------------------------------------------

Peers::Wait Peers::prepare(SteadyTime now) {
  if (now >= next_look_at_descriptors_) {
    look_at_descriptors();
    next_look_at_descriptors_ = now + kDescriptorsEvery;
  }
  if (rebuild_ || !epoll_is_ours()) (void)rebuild();
  if (rebuild_) return {-1, 10};
  SteadyTime until = now + std::chrono::milliseconds(kIdleTimeoutMs);
  watch_touched(now, &until);
  for (const uint64_t number : busy_) {
    const auto channel = channels_.find(number);
    if (channel == channels_.end()) continue;
    for (const auto& request : channel->second->requests()) {
      // What waits for Python is told when there is an answer.
      if (!request->waits) until = now;
      if (request->op != Op::kValue) until = std::min(until, now + std::chrono::microseconds(500));
    }
  }
  if (!ungreeted_.empty()) until = std::min(until, now + greeting_max);
  if (!ending_.empty()) until = now;
  for (const Detached& detached : detached_) until = std::min(until, detached.next_look);
  if (const auto deadline = offers_.next_deadline()) until = std::min(until, *deadline);
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - now).count();
  return {epoll_, static_cast<int>(std::max<int64_t>(left, 0))};
}

void Peers::watch_touched(SteadyTime now, SteadyTime* until) {
  constexpr std::chrono::milliseconds kAgain{10};
  const bool accepts = now >= accept_again_;
  if (!accepts) *until = std::min(*until, accept_again_);
  for (auto& [number, listener] : listeners_) {
    const uint32_t wanted = accepts ? uint32_t{EPOLLIN} : 0;
    if (watch(number, listener->socket, wanted, &listener->registered)) continue;
    *until = std::min(*until, now + kAgain);
  }
  size_t left = 0;  // those that must be looked at again
  for (const uint64_t number : touched_) {
    const auto found = channels_.find(number);
    if (found == channels_.end()) continue;
    Channel& channel = *found->second;
    const bool paused = now < channel.not_before();
    const bool watched = watch(number, channel.socket(), paused ? 0 : channel.wanted_events(),
                               &channel.registered);
    if (!paused && watched) continue;
    touched_[left++] = number;
    *until = std::min(*until, paused ? channel.not_before() : now + kAgain);
  }
  touched_.resize(left);
}

void Peers::handle(const epoll_event& event, SteadyTime now) {
  const uint64_t number = event.data.u64;
  if (number == 0) {
    size_t got = 0;
    int error = 0;
    while (wake_.receive(buffer_.data(), buffer_.size(), &got, &error) == Endpoint::Io::kDone) {
    }
    return;
  }
  if (listeners_.contains(number)) return accept(number, now);
  const auto channel = channels_.find(number);
  if (channel != channels_.end()) return serve(number, *channel->second, event.events, now);
  rebuild_ = true;  // a descriptor that we have no more is still watched
}

void Peers::serve(uint64_t number, Channel& channel, uint32_t events, SteadyTime now) {
  bool lives = true;
  try {
    if ((events & EPOLLOUT) != 0) lives = channel.send_kept(now);
    if (lives && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) {
      lives = read_from(number, channel, now);
    }
  } catch (const std::bad_alloc&) {
    lives = false;  // a packet is lost: nothing that comes after it can be believed
  }
  if (lives) {
    touched_.push_back(number);
  } else {
    end(number, now);
  }
}

bool Peers::read_from(uint64_t number, Channel& channel, SteadyTime now) {
  wire::Packet packet;
  std::string why;
  switch (channel.read(buffer_, &packet, &why, now)) {
    case Channel::Read::kPacket: break;
    case Channel::Read::kNothing: return true;
    case Channel::Read::kEnded:
    case Channel::Read::kMalformed: return false;
  }
  const auto op = static_cast<Op>(packet.kind);
  if (!channel.greeted() || op == Op::kHello) return greet(channel, packet, now);
  if (op == Op::kPart) return channel.keep_part(packet.payload);
  if (op == Op::kFork) {
    Answer answer;
    Result<int> childs = fork(number, channel, now);
    if (childs.ok()) {
      answer.descriptor = *childs;
    } else {
      answer.status = std::move(childs).status();
    }
    return channel.answer(packet.number, std::move(answer), now);
  }
  return step(number, channel, channel.begin(packet), now);
}

bool Peers::greet(Channel& channel, const wire::Packet& packet, SteadyTime now) {
  uint32_t pid = 0;
  wire::Secret shown{};
  if (static_cast<Op>(packet.kind) != Op::kHello ||
      !wire::Reader(packet.payload).read_all(pid, shown)) {
    return false;
  }
  Session& session = channel.session();
  if (session.uid != ::geteuid() && !equal(shown, secret_)) return false;
  if (session.pid == 0) session.pid = static_cast<pid_t>(pid);  // connected before it was born
  channel.greet();
  Answer answer;
  wire::append(answer.payload, static_cast<uint32_t>(::getpid()));
  return channel.answer(packet.number, std::move(answer), now);
}

// False if the peer has gone, or does not keep to the protocol.
bool Peers::step(uint64_t number, Channel& channel, Request& request, SteadyTime now) {
  std::optional<Answer> answer;
  request.waits = false;
  try {
    answer = channel.session().step(request);
  } catch (const std::bad_alloc&) {
    // What is given back must not be lost.
    if (request.op == Op::kRelease) {
      request.waits = true;
    } else {
      channel.session().give_up(request);
      answer = Answer{.status = no_memory()};
    }
  }
  for (auto& file : channel.session().take_let_go()) let_go(std::move(file));
  if (!answer) {
    if (std::find(busy_.begin(), busy_.end(), number) == busy_.end()) busy_.push_back(number);
    return true;
  }
  if (answer->malformed) return false;
  const uint32_t its_number = request.number;
  auto& requests = channel.requests();
  requests.erase(std::find_if(requests.begin(), requests.end(),
                              [&](const auto& each) { return each.get() == &request; }));
  return channel.answer(its_number, std::move(*answer), now);
}

Result<int> Peers::fork(uint64_t number, Channel& channel, SteadyTime now) {
  const Session& parent = channel.session();
  if (channels_.size() >= channels_max() || channel.children >= parent.scope.limits.children) {
    return Status::error(ErrorCode::kSharing, "there are too many peers");
  }
  int pair[2];
  if (sys().socketpair(pair) != 0) return Status::system_error(errno, "socketpair");
  Endpoint ours(pair[0]);
  Endpoint theirs(pair[1]);
  const uint64_t its_number = next_number();
  auto session = std::make_unique<Session>(its_number, offers_, parent.scope, 0, parent.uid);
  PGALLOC_RETURN_IF_ERROR(parent.copy_to(*session));
  auto child = std::make_unique<Channel>(std::move(ours), std::move(session), /*greeted=*/true, now);
  child->parent = number;
  touched_.push_back(its_number);
  channels_.emplace(its_number, std::move(child));
  ++channel.children;
  return theirs.release();
}

void Peers::work(SteadyTime now) {
  const std::vector<uint64_t> busy = std::exchange(busy_, {});
  for (const uint64_t number : busy) {
    const auto found = channels_.find(number);
    if (found == channels_.end()) continue;
    Channel& channel = *found->second;
    bool lives = true;
    std::vector<Request*> requests;
    for (const auto& request : channel.requests()) requests.push_back(request.get());
    for (Request* const request : requests) {
      if (lives) lives = step(number, channel, *request, now);
    }
    if (lives) {
      touched_.push_back(number);
    } else {
      end(number, now);
    }
  }
  drop_ungreeted(now);
  look_after_detached(now);
  if (!ending_.empty()) {
    Session& session = *ending_.front();
    const bool ended = session.end_some(kRangesAtOnce);
    for (auto& file : session.take_let_go()) let_go(std::move(file));
    if (ended) ending_.pop_front();
  }
  for (Offer& offer : offers_.take_expired(now)) {
    drop(offer);
    let_go(std::move(offer.file));
  }
}

void Peers::drop_ungreeted(SteadyTime now) {
  size_t count = 0;
  std::deque<uint64_t> left;
  for (auto number = ungreeted_.rbegin(); number != ungreeted_.rend(); ++number) {
    const auto channel = channels_.find(*number);
    if (channel == channels_.end() || channel->second->greeted()) continue;
    if (++count > kUngreetedMax || now - channel->second->since() > greeting_max) {
      end(*number, now);
    } else {
      left.push_front(*number);
    }
  }
  ungreeted_ = std::move(left);
}

// --- Ends ----------------------------------------------------------------------------------------

void Peers::end(uint64_t number, SteadyTime now) {
  const auto found = channels_.find(number);
  if (found == channels_.end()) return;
  const std::unique_ptr<Channel> channel = std::move(found->second);
  channels_.erase(found);
  if (const auto parent = channels_.find(channel->parent); parent != channels_.end()) {
    --parent->second->children;
  }
  for (auto& request : channel->requests()) channel->session().give_up(*request);
  channel->requests().clear();
  const bool intact = channel->socket().intact();
  if (intact) {
    epoll_event event{};
    sys().epoll_ctl(epoll_, EPOLL_CTL_DEL, channel->socket().fd(), &event);
  }
  end_session(channel->take_session(), intact ? channel->socket().fd() : -1, now);
}

void Peers::end_session(std::unique_ptr<Session> session, int socket, SteadyTime now) {
  if (session->holds_nothing()) {
    offers_.sender_ended(session->id, now);
    for (auto& file : session->take_let_go()) let_go(std::move(file));
    return;
  }
  // Whom a forked child was connected by is no child.
  PeerProcess process(session->born_connected() ? -1 : socket, session->pid);
  if (process.may_see(session->descriptors())) {
    detached_.push_back({std::move(session), std::move(process), now + kFirstLook, kFirstLook});
  } else {
    offers_.sender_ended(session->id, now);
    ending_.push_back(std::move(session));
  }
}

void Peers::look_after_detached(SteadyTime now) {
  for (size_t i = 0; i < detached_.size();) {
    Detached& detached = detached_[i];
    if (now < detached.next_look) {
      ++i;
      continue;
    }
    if (detached.process.may_see(detached.session->descriptors())) {
      detached.pause = std::min<std::chrono::nanoseconds>(2 * detached.pause, kLongestLook);
      detached.next_look = now + detached.pause;
      ++i;
      continue;
    }
    offers_.sender_ended(detached.session->id, now);
    ending_.push_back(std::move(detached.session));
    detached_.erase(detached_.begin() + static_cast<ptrdiff_t>(i));
  }
}

// Descriptors that were closed behind our back say nothing any more.
void Peers::look_at_descriptors() {
  std::vector<uint64_t> lost;
  for (const auto& [number, channel] : channels_) {
    if (!channel->socket().intact()) lost.push_back(number);
  }
  for (const uint64_t number : lost) end(number, std::chrono::steady_clock::now());
  for (auto listener = listeners_.begin(); listener != listeners_.end();) {
    if (listener->second->socket.intact()) {
      ++listener;
      continue;
    }
    if (listener->first == own_listener_) own_listener_ = 0;
    if (listener->second->scope.file != nullptr) let_go(std::move(listener->second->scope.file));
    listener = listeners_.erase(listener);
  }
  if (!wake_.intact() || !waker_.intact()) rebuild_ = true;
  if (own_listener_ == 0 && secret_ != wire::Secret{}) (void)start();
}

}  // namespace pgalloc
