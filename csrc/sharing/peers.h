// Purpose: all connections of an owner of pages: who listens, who is connected, what is under way, and
// what those hold that have lost their connection.
//
// Thread safety: externally synchronised (the broker's lock).
//
// Invariants: those of broker.h, which has the thread, and
//   1. A std::bad_alloc comes out before anything has changed, or costs the request it belongs to. A
//      connection that ends needs no memory: its place among those who wait, work and end was made
//      together with it.
//   2. Requests are worked on in turn, one step for each peer, for about 2 ms: whatever one asks for, the
//      others are read, and answered, in between.
#pragma once

#include <chrono>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/process_generation.h"
#include "os/descriptor.h"
#include "sharing/channel.h"
#include "sharing/departed.h"
#include "sharing/door.h"
#include "sharing/poller.h"

namespace pgalloc {

class Peers {
 public:
  Peers() = default;
  ~Peers();
  Peers(const Peers&) = delete;
  Peers& operator=(const Peers&) = delete;

  // Begins to listen under a name of its own. What has succeeded is not done again.
  Status start();
  bool started() const { return own_listener_ != 0; }
  const std::string& name() const { return name_; }
  const wire::Secret& secret() const { return secret_; }
  // Where processes in other network namespaces connect, for which name() says nothing; empty if there
  // is no such place.
  const std::string& path() const { return door_.path(); }

  Result<uint64_t> add_listener(Endpoint socket, Scope scope);
  void remove_listener(uint64_t number);
  // A channel that needs no greeting.
  Status add_child(Endpoint socket, std::unique_ptr<Session> session);
  uint64_t next_number() { return ++last_number_; }

  // --- The thread's rounds -------------------------------------------------------------------------

  // What is to be waited for, and how long. Events may be waited for without the lock.
  struct Wait {
    int epoll = -1;  // none to be had: only wait
    int timeout_ms = 0;
  };
  Wait prepare(SteadyTime now);
  void handle(const epoll_event& event, SteadyTime now);
  // Steps of requests, and what time brings.
  void work(SteadyTime now);
  // Ends the wait.
  void wake() { poller_.wake(); }
  Departed& departed() { return departed_; }

  // What may be a file's last owner: to be destroyed without the lock.
  struct Listener {
    Endpoint socket;
    Scope scope;
    Poller::Registration registered;
  };
  using Listeners = std::map<uint64_t, std::unique_ptr<Listener>>;
  struct LetGo {
    std::vector<std::shared_ptr<MemoryFile>> files;
    Listeners listeners;
    Departed::Place sessions;
    Offers::Places offers;
  };
  LetGo take_let_go() noexcept;
  void let_go(std::shared_ptr<MemoryFile> file) { let_go_.files.push_back(std::move(file)); }

  // --- What there is -------------------------------------------------------------------------------

  Offers& offers() { return offers_; }
  // Whether something that was sent is still to be claimed, or the answer to a claim to be sent.
  bool delivering() const;
  template <class Visit>
  void visit_sessions(Visit visit) const {
    for (const auto& [number, connected] : channels_) {
      if (connected->channel.greeted()) visit(connected->channel.session());
    }
    departed_.visit(visit);
  }
  size_t channel_count() const { return channels_.size(); }
  size_t listener_count() const { return listeners_.size(); }
  // What is wrong, if something is.
  std::optional<std::string> verify() const;

  // For tests: shorter times, and what could be closed from outside.
  std::chrono::nanoseconds greeting_max{std::chrono::seconds(10)};
  std::chrono::nanoseconds accept_pause{std::chrono::milliseconds(100)};  // after one that failed
  void set_look_every(std::chrono::nanoseconds time) {
    look_every_ = time;
    next_look_at_descriptors_ = {};
  }
  // A peer in this process itself, which has its files mapped anyway, ends with its connection.
  bool own_peers_end = false;
  std::vector<int> descriptors() const;

 private:
  using Numbers = std::list<uint64_t>;
  struct Unborn;
  struct Connected {
    Connected(uint64_t number, Endpoint socket, std::unique_ptr<Session> session, bool greeted,
              SteadyTime now)
        : channel(std::move(socket), std::move(session), greeted, now),
          when_touched{number},
          when_busy{number} {}

    Channel channel;
    Poller::Registration registered;
    std::unique_ptr<CountedChild> counted;  // a forked child's
    Numbers when_touched;                   // empty while it is in touched_
    Numbers when_busy;                      // empty while it is in busy_
    Departed::Place when_gone = Departed::make_place();
    std::unique_ptr<Unborn> unborn;  // a child that gets its leases
  };
  struct Unborn {
    uint64_t number = 0;
    std::unique_ptr<Connected> child;
    os::Descriptor theirs;
    Session::Copying copying;
  };
  using Channels = std::unordered_map<uint64_t, std::unique_ptr<Connected>>;

  // Half of the descriptors this process may have: the others are for others.
  static size_t channels_max();
  void add(uint64_t number, std::unique_ptr<Connected>&& connected);
  void touch(Connected& connected) noexcept {
    touched_.splice(touched_.end(), connected.when_touched);
  }
  void accept(Listener& listener, SteadyTime now);
  void let_in(Endpoint socket, const Scope& scope, SteadyTime now);
  bool join_others(Session& session) const;
  bool watch_listeners(SteadyTime now);
  bool watch_touched(SteadyTime now, SteadyTime* until);
  SteadyTime next_time(SteadyTime now) const;
  void serve(Connected& connected, uint64_t number, uint32_t events, SteadyTime now);
  bool read(Connected& connected, SteadyTime now);
  bool work_on(Connected& connected, SteadyTime now, SteadyTime until);
  bool step(Connected& connected, Channel::Requests::iterator request, SteadyTime now);
  std::optional<Answer> answer_to(Connected& connected, Request& request, SteadyTime now);
  std::optional<Answer> greet(Channel& channel, const Request& request);
  std::optional<Answer> fork(Connected& connected, Request& request, SteadyTime now);
  Status begin_fork(Connected& connected, SteadyTime now);
  void give_up_unborn(Connected& connected, SteadyTime now) noexcept;
  void give_up(std::unique_ptr<Connected> child, SteadyTime now) noexcept;
  void take_turns(SteadyTime now);
  void end(uint64_t number, SteadyTime now) noexcept;
  void look_at_descriptors(SteadyTime now);
  void drop_ungreeted(SteadyTime now);
  void drop_expired(SteadyTime now);

  void open_door();

  std::string name_;
  uint64_t door_listener_ = 0;
  Door door_;
  wire::Secret secret_{};
  const uint32_t generation_ = process_generation();
  Poller poller_;
  uint64_t seen_generation_ = 0;  // of the poller
  uint64_t last_number_ = 0;      // 0 is the poller's own
  uint64_t own_listener_ = 0;
  Offers offers_;
  Listeners listeners_;
  Channels channels_;
  std::deque<uint64_t> ungreeted_;  // oldest first; some may have gone
  Numbers touched_;                 // what they wait for may have changed; some may have gone
  Numbers busy_;                    // with requests under way; some may have gone
  Channel::Requests spare_;
  Departed departed_{offers_};
  SteadyTime accept_again_{};
  SteadyTime next_look_at_descriptors_{};
  std::chrono::nanoseconds look_every_{std::chrono::seconds(1)};
  LetGo let_go_;
};

}  // namespace pgalloc
