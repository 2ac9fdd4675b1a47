// Waiting, reading, working, and ends. How peers get in: peers_listening.cc; their children: peers_forks.cc.

#include "sharing/peers.h"

#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <new>
#include <utility>

namespace pgalloc {

using wire::Op;

namespace {

constexpr size_t kUngreetedMax = 64;
constexpr size_t kRangesAtOnce = 512;  // given back of those who have ended: about 0.3 ms
constexpr std::chrono::milliseconds kWorkMax{2};
constexpr std::chrono::milliseconds kAgain{10};  // after what the kernel refused
constexpr std::chrono::microseconds kWaitsMax{500};

bool equal(const wire::Secret& left, const wire::Secret& right) {
  unsigned difference = 0;  // all bytes are looked at, whichever differs
  for (size_t i = 0; i < left.size(); ++i) difference |= unsigned{left[i]} ^ right[i];
  return difference == 0;
}

}  // namespace

Peers::~Peers() {
  // In a forked child only the descriptors go: the rest is its parent's.
  if (generation_ != process_generation()) return;
  while (!offers_.empty()) drop(offers_.take_any());
  offers_.drop_some(SIZE_MAX);
}

// A std::bad_alloc leaves it with the caller.
void Peers::add(uint64_t number, std::unique_ptr<Connected>&& connected) {
  auto& place = channels_[number];
  place = std::move(connected);
  touch(*place);
}

// --- Waiting -------------------------------------------------------------------------------------

Peers::Wait Peers::prepare(SteadyTime now) {
  if (now >= next_look_at_descriptors_) {
    next_look_at_descriptors_ = now + look_every_;
    look_at_descriptors(now);
  }
  if (!poller_.ready()) return {-1, static_cast<int>(kAgain.count())};
  if (std::exchange(seen_generation_, poller_.generation()) != poller_.generation()) {
    for (auto& [number, connected] : channels_) touch(*connected);
  }
  SteadyTime until = next_time(now);
  if (!watch_listeners(now)) until = std::min<SteadyTime>(until, now + kAgain);
  if (!watch_touched(now, &until)) until = std::min<SteadyTime>(until, now + kAgain);
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - now).count();
  return {poller_.fd(), static_cast<int>(std::clamp<int64_t>(left, 0, INT_MAX))};
}

SteadyTime Peers::next_time(SteadyTime now) const {
  if (departed_.ending() || offers_.dropping()) return now;
  SteadyTime until = next_look_at_descriptors_;
  for (const uint64_t number : busy_) {
    const auto found = channels_.find(number);
    if (found == channels_.end()) continue;
    for (const Request& request : found->second->channel.requests()) {
      if (!request.waits) return now;
      until = std::min<SteadyTime>(until, now + kWaitsMax);
    }
  }
  if (now < accept_again_) until = std::min(until, accept_again_);
  if (!ungreeted_.empty()) until = std::min<SteadyTime>(until, now + greeting_max);
  if (const auto time = departed_.next_time()) until = std::min(until, *time);
  if (const auto time = offers_.next_deadline()) until = std::min(until, *time);
  return until;
}

// False if one has to be tried again.
bool Peers::watch_listeners(SteadyTime now) {
  const uint32_t wanted = now >= accept_again_ ? uint32_t{EPOLLIN} : 0;
  bool all = true;
  for (auto& [number, listener] : listeners_) {
    all = poller_.watch(number, listener->socket, wanted, &listener->registered) && all;
  }
  return all;
}

// What the channels wait for that have changed. False if one has to be tried again; `until` becomes the
// time, if that is sooner, at which the kernel is asked again for what it has refused.
bool Peers::watch_touched(SteadyTime now, SteadyTime* until) {
  bool all = true;
  for (auto number = touched_.begin(); number != touched_.end();) {
    const auto at = number++;
    const auto found = channels_.find(*at);
    if (found == channels_.end()) {
      touched_.erase(at);
      continue;
    }
    Connected& connected = *found->second;
    const Channel& channel = connected.channel;
    if (now < channel.not_before()) {
      poller_.unwatch(connected.channel.socket(), &connected.registered);
      *until = std::min(*until, channel.not_before());
    } else if (poller_.watch(*at, connected.channel.socket(), channel.wanted_events(),
                             &connected.registered)) {
      connected.when_touched.splice(connected.when_touched.end(), touched_, at);
    } else {
      all = false;
    }
  }
  return all;
}

// --- Reading -------------------------------------------------------------------------------------

void Peers::handle(const epoll_event& event, SteadyTime now) {
  const uint64_t number = event.data.u64;
  if (number == 0) return poller_.take_wakes();
  if (const auto listener = listeners_.find(number); listener != listeners_.end()) {
    return accept(*listener->second, now);
  }
  // Else it has gone meanwhile.
  const auto found = channels_.find(number);
  if (found != channels_.end()) serve(*found->second, number, event.events, now);
}

void Peers::serve(Connected& connected, uint64_t number, uint32_t events, SteadyTime now) {
  bool lives = true;
  if ((events & EPOLLOUT) != 0) lives = connected.channel.send_kept(now);
  if (lives && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) lives = read(connected, now);
  if (!lives) return end(number, now);
  // What an answer would have brought that could not be sent is given back.
  if (!connected.channel.requests().empty()) busy_.splice(busy_.end(), connected.when_busy);
  touch(connected);
}

bool Peers::read(Connected& connected, SteadyTime now) {
  try {
    Channel::make_spare(&spare_);
  } catch (const std::bad_alloc&) {
    return true;  // it is read later
  }
  switch (connected.channel.read(&spare_, now)) {
    case Channel::Read::kRequest:
      busy_.splice(busy_.end(), connected.when_busy);
      return true;
    case Channel::Read::kNothing:
      return true;
    case Channel::Read::kEnded:
    case Channel::Read::kMalformed:
      return false;
  }
  return false;
}

// --- Working -------------------------------------------------------------------------------------

void Peers::work(SteadyTime now) {
  take_turns(now);
  drop_ungreeted(now);
  departed_.end_some(kRangesAtOnce);
  drop_expired(now);
}

void Peers::take_turns(SteadyTime now) {
  const SteadyTime until = std::chrono::steady_clock::now() + kWorkMax;
  for (size_t left = busy_.size(); left > 0; --left) {
    const uint64_t number = busy_.front();
    const auto found = channels_.find(number);
    if (found == channels_.end()) {
      busy_.pop_front();
      continue;
    }
    Connected& connected = *found->second;
    const bool lives = work_on(connected, now, until);
    if (!lives) {
      end(number, now);
      busy_.pop_front();
    } else if (connected.channel.requests().empty()) {
      connected.when_busy.splice(connected.when_busy.end(), busy_, busy_.begin());
    } else {
      busy_.splice(busy_.end(), busy_, busy_.begin());
    }
    if (lives) touch(connected);
    if (std::chrono::steady_clock::now() >= until) return;
  }
}

// A step of each of its requests, or of some. False if the peer has gone.
bool Peers::work_on(Connected& connected, SteadyTime now, SteadyTime until) {
  Channel::Requests& requests = connected.channel.requests();
  for (size_t left = requests.size(); left > 0; --left) {
    const auto request = requests.begin();
    requests.splice(requests.end(), requests, request);
    if (!step(connected, request, now)) return false;
    if (std::chrono::steady_clock::now() >= until) break;
  }
  return true;
}

// False if the peer has gone, or does not keep to the protocol.
bool Peers::step(Connected& connected, Channel::Requests::iterator request, SteadyTime now) {
  Channel& channel = connected.channel;
  std::optional<Answer> answer;
  request->waits = false;
  try {
    answer = answer_to(connected, *request, now);
    for (auto& file : channel.session().take_let_go()) let_go(std::move(file));
  } catch (const std::bad_alloc&) {
    // What is given back must not be lost.
    request->waits = request->op == Op::kRelease || request->released > 0;
    if (!request->waits && !answer) {
      channel.session().give_up(*request);
      answer.emplace();
      answer->status = Status::error(ErrorCode::kNoMemory, "no memory is left");
    }
  }
  if (!answer) return true;
  return !answer->malformed && channel.answer(request, std::move(*answer), now);
}

std::optional<Answer> Peers::answer_to(Connected& connected, Request& request, SteadyTime now) {
  Channel& channel = connected.channel;
  if (!channel.greeted() || request.op == Op::kHello) return greet(channel, request);
  if (!channel.session().release_first(request)) return std::nullopt;
  if (request.op == Op::kFork) return fork(connected, request, now);
  return channel.session().step(request);
}

std::optional<Answer> Peers::greet(Channel& channel, const Request& request) {
  Answer malformed;
  malformed.malformed = true;
  uint32_t pid = 0;
  wire::Secret shown{};
  if (request.op != Op::kHello || !wire::Reader(request.payload).read_all(pid, shown)) {
    return malformed;
  }
  Session& session = channel.session();
  if (session.uid != ::geteuid() && !equal(shown, secret_)) return malformed;
  if (session.pid == kUnseen) session.shown_pid = static_cast<pid_t>(pid);
  channel.greet();
  Answer answer;
  wire::append(answer.payload, static_cast<uint32_t>(::getpid()));
  return answer;
}

// --- Ends ----------------------------------------------------------------------------------------

void Peers::end(uint64_t number, SteadyTime now) noexcept {
  const auto found = channels_.find(number);
  if (found == channels_.end()) return;
  const std::unique_ptr<Connected> ended = std::move(found->second);
  channels_.erase(found);
  give_up_unborn(*ended, now);
  poller_.unwatch(ended->channel.socket(), &ended->registered);
  const bool hung_up = ended->channel.hung_up();
  std::unique_ptr<Session> session = ended->channel.take_session();
  // A child that has not spoken yet never was if its end is closed. If it is ours that was lost, from
  // outside, the child may live.
  if (session->pid == 0 && !hung_up) session->pid = kUnseen;
  std::optional<PeerProcess> process;
  if (!session->holds_nothing()) {
    const bool blind = own_peers_end && session->pid == ::getpid();
    process.emplace(blind ? 0 : session->pid, std::move(session->process));
  }
  departed_.add(std::move(ended->when_gone), std::move(session), std::move(process), now);
}

void Peers::drop_ungreeted(SteadyTime now) {
  std::erase_if(ungreeted_, [this](uint64_t number) {
    const auto found = channels_.find(number);
    return found == channels_.end() || found->second->channel.greeted();
  });
  while (!ungreeted_.empty()) {
    const Channel& oldest = channels_.find(ungreeted_.front())->second->channel;
    if (ungreeted_.size() <= kUngreetedMax && now - oldest.since() <= greeting_max) return;
    end(ungreeted_.front(), now);
    ungreeted_.pop_front();
  }
}

void Peers::drop_expired(SteadyTime now) {
  offers_.drop_later(offers_.take_expired(now, kRangesAtOnce));
  offers_.drop_some(kRangesAtOnce);
}

// Descriptors that were closed behind our back say nothing any more.
void Peers::look_at_descriptors(SteadyTime now) {
  poller_.look();
  for (auto at = channels_.begin(); at != channels_.end();) {
    const auto one = at++;
    if (!one->second->channel.socket().intact()) end(one->first, now);
  }
  for (auto at = listeners_.begin(); at != listeners_.end();) {
    const auto one = at++;
    if (one->second->socket.intact()) continue;
    if (one->first == own_listener_) own_listener_ = 0;
    if (one->first == door_listener_) door_listener_ = 0;
    let_go_.listeners.insert(listeners_.extract(one));
  }
  if (secret_ == wire::Secret{}) return;
  if (own_listener_ == 0) {
    (void)start();
  } else if (door_listener_ == 0 || !door_.intact()) {
    open_door();
  }
}

bool Peers::delivering() const {
  return offers_.any_claimable() || std::ranges::any_of(channels_, [](const auto& entry) {
           return entry.second->channel.kept_count() > 0 || entry.second->channel.claims();
         });
}

Peers::LetGo Peers::take_let_go() noexcept {
  LetGo taken = std::exchange(let_go_, {});
  taken.sessions = departed_.take_finished();
  taken.offers = offers_.take_dropped();
  return taken;
}

// --- For tests -----------------------------------------------------------------------------------

std::optional<std::string> Peers::verify() const {
  if (auto broken = offers_.verify()) return broken;
  for (const auto& [number, connected] : channels_) {
    if (auto broken = connected->channel.session().verify()) return broken;
    const bool idle = connected->channel.requests().empty();
    if (idle != !connected->when_busy.empty()) return "a peer with requests has no turn";
  }
  return std::nullopt;
}

std::vector<int> Peers::descriptors() const {
  std::vector<int> descriptors = poller_.descriptors();
  const auto own = listeners_.find(own_listener_);
  if (own != listeners_.end()) descriptors.push_back(own->second->socket.fd());
  const auto door = listeners_.find(door_listener_);
  if (door != listeners_.end()) descriptors.push_back(door->second->socket.fd());
  if (door_.fd() >= 0) descriptors.push_back(door_.fd());
  return descriptors;
}

}  // namespace pgalloc
