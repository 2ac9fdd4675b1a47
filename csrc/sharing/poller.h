// Purpose: what the broker's thread sleeps on: an epoll that watches sockets by number, and a way to
// wake the thread up.
//
// Thread safety: externally synchronised (the broker's lock). Events may be waited for without it.
//
// Invariants
//   1. An epoll, or a socket, that is not ours any more is neither used nor closed. A new one takes its
//      place, and all is registered anew: what was registered has another generation.
//   2. What fails changes nothing, and is tried again.
#pragma once

#include <sys/epoll.h>

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "sharing/endpoint.h"

namespace pgalloc {

class Poller {
 public:
  // What the epoll knows of a socket.
  struct Registration {
    uint64_t generation = 0;  // 0: nothing
    uint32_t events = 0;
  };

  Poller() = default;
  ~Poller();
  Poller(const Poller&) = delete;
  Poller& operator=(const Poller&) = delete;

  // Makes what is missing, or not ours any more. False if there is no epoll now. Before each wait.
  bool ready();
  // Finds out what else is not ours any more. Now and then: see Peers.
  void look();
  Status start();
  int fd() const { return epoll_; }
  // One more each time when all has to be registered anew.
  uint64_t generation() const { return generation_; }

  // The end of a socket is watched for in any case. REQUIRES: ready(). False if it did not succeed.
  bool watch(uint64_t number, const Endpoint& socket, uint32_t events, Registration* known);
  void unwatch(const Endpoint& socket, Registration* known);

  // Wakes the thread up; its event has number 0, and is to be taken.
  void wake();
  void take_wakes();

  // For tests: what could be closed from outside.
  std::vector<int> descriptors() const { return {epoll_, wake_.fd(), waker_.fd()}; }

 private:
  enum class Whose { kOurs, kUnknown, kNotOurs };
  Whose whose_epoll() const;

  int epoll_ = -1;
  Endpoint wake_;      // the thread's end
  Endpoint waker_;     // the others'
  bool lost_ = false;  // one of the two is not ours any more
  uint64_t generation_ = 0;
};

}  // namespace pgalloc
