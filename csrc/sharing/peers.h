// Purpose: all connections of an owner of pages: who listens, who is connected, what is under way, and
// what those hold that have lost their connection.
//
// Thread safety: externally synchronised (the broker's lock), but for wait().
//
// Invariants: those of broker.h, which has the thread.
#pragma once

#include <sys/epoll.h>

#include <array>
#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/process_generation.h"
#include "sharing/channel.h"
#include "sharing/peer_process.h"

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
  // A step of each request, and what time brings.
  void work(SteadyTime now);
  // Ends the wait.
  void wake();
  // Files that were let go of: to be destroyed without the lock.
  std::vector<std::shared_ptr<MemoryFile>> take_let_go() { return std::move(let_go_); }
  void let_go(std::shared_ptr<MemoryFile> file) { let_go_.push_back(std::move(file)); }

  // --- What there is -------------------------------------------------------------------------------

  Offers& offers() { return offers_; }
  template <class Visit>
  void visit_sessions(Visit visit) const {
    for (const auto& [number, channel] : channels_) {
      if (channel->greeted()) visit(channel->session());
    }
    for (const Detached& detached : detached_) visit(*detached.session);
  }
  size_t channel_count() const { return channels_.size(); }
  size_t listener_count() const { return listeners_.size(); }
  size_t detached_count() const { return detached_.size() + ending_.size(); }
  std::chrono::nanoseconds greeting_max{std::chrono::seconds(10)};

 private:
  struct Listener {
    Endpoint socket;
    Scope scope;
    uint32_t registered = 0;
  };
  // The connection has ended, and the process may see pages.
  struct Detached {
    std::unique_ptr<Session> session;
    PeerProcess process;
    SteadyTime next_look;
    std::chrono::nanoseconds pause{};
  };

  Status rebuild();
  bool epoll_is_ours();
  bool watch(uint64_t number, const Endpoint& socket, uint32_t wanted, uint32_t* registered);
  void watch_touched(SteadyTime now, SteadyTime* until);
  void accept(uint64_t number, SteadyTime now);
  void serve(uint64_t number, Channel& channel, uint32_t events, SteadyTime now);
  bool read_from(uint64_t number, Channel& channel, SteadyTime now);
  bool greet(Channel& channel, const wire::Packet& packet, SteadyTime now);
  bool step(uint64_t number, Channel& channel, Request& request, SteadyTime now);
  Result<int> fork(uint64_t number, Channel& channel, SteadyTime now);
  void end(uint64_t number, SteadyTime now);
  void end_session(std::unique_ptr<Session> session, int socket, SteadyTime now);
  void look_after_detached(SteadyTime now);
  void look_at_descriptors();
  void drop_ungreeted(SteadyTime now);

  std::string name_;
  wire::Secret secret_{};
  const uint32_t generation_ = process_generation();
  int epoll_ = -1;
  Endpoint wake_;    // the thread's end
  Endpoint waker_;   // the others'
  bool rebuild_ = false;
  uint64_t last_number_ = 0;  // 0 is wake_
  uint64_t own_listener_ = 0;
  std::unordered_map<uint64_t, std::unique_ptr<Listener>> listeners_;
  std::unordered_map<uint64_t, std::unique_ptr<Channel>> channels_;
  std::deque<uint64_t> ungreeted_;  // oldest first; some may have gone
  std::vector<uint64_t> touched_;   // what they wait for may have changed
  std::vector<uint64_t> busy_;      // with requests under way
  std::vector<Detached> detached_;
  std::deque<std::unique_ptr<Session>> ending_;  // giving back what they held
  Offers offers_;
  SteadyTime accept_again_{};
  SteadyTime next_look_at_descriptors_{};
  std::vector<std::shared_ptr<MemoryFile>> let_go_;
  std::array<char, wire::kPacketBytesMax + 1> buffer_;
};

}  // namespace pgalloc
