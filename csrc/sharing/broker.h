// Purpose: the broker: one thread of an owner of pages that answers its peers. It never takes the GIL,
// so they are answered whatever Python does.
//
// Thread safety: any thread. The lock is held for steps of requests, about 2 ms, and never while a peer
// is waited for or looked at.
//
// Another thread looks at processes whose connections have ended: their mappings may be a great many, and
// the peers are answered meanwhile. It is there for one look.
//
// Lock order: the broker's lock comes before every other lock of the core.
//
// Invariants
//   1. No peer is waited for: what one does not read waits in its channel, which is not read meanwhile.
//   2. A peer that has not said who it is stays for ten seconds at most, and there are at most
//      64 of them: the newest.
//   3. What a peer holds it holds until it lets go of it or cannot see it any more: until its process
//      has ended, or has nothing of these files mapped. The end of its connection ends nothing else.
//   4. Once the broker listens it listens until the process ends, so that no other process can take its
//      name. A forked child closes all of it at once: peers learn of an owner's death by its last
//      descriptor.
//   5. The thread ends only when it is told to. What fails costs the request it belongs to at most.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "sharing/departed.h"
#include "sharing/endpoint.h"
#include "sharing/peers.h"
#include "sharing/session.h"

namespace pgalloc {

class Broker {
 public:
  static Broker& instance();

  // --- The owner's own -----------------------------------------------------------------------------

  // Where peers connect, and what lets users in that would be refused.
  struct Address {
    std::string name;  // of the abstract socket
    std::string path;  // for other network namespaces; may be empty
    wire::Secret secret{};
    friend bool operator==(const Address&, const Address&) = default;
  };
  Result<Address> address() EXCLUDES(mu_);

  // Pages are sent: the name by which they are claimed, once. They have a reference of their own.
  Result<wire::Secret> offer(const std::shared_ptr<MemoryFile>& file, FileRange range)
      EXCLUDES(mu_);
  // Whether an address with this secret is this process's.
  bool is_own(const wire::Secret& secret) EXCLUDES(mu_);
  // The file whose pages were offered by this name; nothing if they are not on offer.
  std::optional<uint64_t> offered_file(const wire::Secret& secret) EXCLUDES(mu_);
  // Claimed by this process itself: a reference of the caller's.
  Result<Offer> claim(const wire::Secret& secret) EXCLUDES(mu_);
  // The bytes of the pages of what was sent so long ago, and dropped now.
  uint64_t drop_unclaimed(uint64_t file, std::chrono::nanoseconds age) EXCLUDES(mu_);

  struct Lease {
    pid_t pid = 0;
    uid_t uid = 0;
    uint64_t bytes = 0;
    double since_epoch = 0;
    bool claimed = true;
  };
  std::vector<Lease> leases(uint64_t file) EXCLUDES(mu_);
  // Waits until all that was sent of this process's files has been claimed, and the receivers were told:
  // they need this process no more. False if the deadline passed first.
  bool await_claims(SteadyTime deadline) EXCLUDES(mu_);

  // --- Peers ---------------------------------------------------------------------------------------

  // Accepts peers from a listening socket, which it takes over, also if it fails. The number by which
  // that ends.
  Result<uint64_t> serve(int fd, Scope scope) EXCLUDES(mu_);
  void stop_serving(uint64_t number) EXCLUDES(mu_);

  // --- The thread ----------------------------------------------------------------------------------

  void park() EXCLUDES(mu_);
  void resume() EXCLUDES(mu_);

  // --- For Forks -----------------------------------------------------------------------------------

  // While it lives the thread runs, though it is parked: what a fork waits for may be an answer of this
  // very broker, or of an owner that forks as well and waits for one. One at a time.
  class Attending {
   public:
    Attending();
    ~Attending();
    Attending(const Attending&) = delete;
    Attending& operator=(const Attending&) = delete;
  };
  // The lock is held from here to one of the other two.
  void lock_for_fork();
  void unlock_in_parent();
  void reset_in_child();
  // A child that is about to be forked, at the other end of `socket`: what it will hold goes into the
  // session, which the child's end of the connection ends. With the lock held.
  Result<Session*> begin_child(Endpoint socket);
  Result<Address> address_for_child();

  struct Figures {
    size_t channels = 0;
    size_t listeners = 0;
    size_t offers = 0;
    size_t sessions_without_channel = 0;
    bool looking = false;
  };
  Figures figures() EXCLUDES(mu_);

  // After a fork in which no thread was to be had the next call of any method starts it again. This one
  // does only that, and costs a look if there is nothing to do.
  static void start_if_it_lacks_its_thread() {
    if (lacks_thread_.load(std::memory_order_relaxed)) (void)instance().figures();
  }

  // --- For tests -----------------------------------------------------------------------------------

  // How long a peer may take to greet, how long an offer waits after its sender has ended, how often it
  // is looked whether descriptors were closed from outside, and how long after an accept that failed the
  // next one comes.
  struct Times {
    std::chrono::nanoseconds greeting;
    std::chrono::nanoseconds after_sender;
    std::chrono::nanoseconds look;
    std::chrono::nanoseconds accept;
  };
  void set_times(const Times& times) EXCLUDES(mu_);
  // Peers in this process, which has its files mapped anyway, end with their connections.
  void set_own_peers_end(bool end) EXCLUDES(mu_);
  // What could be closed from outside.
  std::vector<int> descriptors() EXCLUDES(mu_);
  std::optional<std::string> verify() EXCLUDES(mu_);

 private:
  class Locked;
  class Unlocked;

  static inline constinit std::atomic<bool> lacks_thread_{false};  // it could not be started again

  Broker();
  Status start() REQUIRES(mu_);
  Status start_thread() REQUIRES(mu_);
  void retry_thread() REQUIRES(mu_);
  void tell_waiting() REQUIRES(mu_);
  void round() REQUIRES(mu_);
  int wait_for_events(const Peers::Wait& wait, std::span<epoll_event> events) REQUIRES(mu_);
  void begin_look(SteadyTime now) REQUIRES(mu_);
  void start_looker() REQUIRES(mu_);
  void end_look(std::chrono::nanoseconds took) REQUIRES(mu_);
  void run_look() EXCLUDES(mu_);
  void join_looker() EXCLUDES(mu_);
  void run() EXCLUDES(mu_);
  void stop_thread() EXCLUDES(mu_);
  bool runs() const REQUIRES(mu_) { return parked_ == 0 || attending_; }
  Mutex mu_{LockRank::kBroker};
  std::unique_ptr<Peers> peers_ GUARDED_BY(mu_);
  std::unique_ptr<std::thread> thread_ GUARDED_BY(mu_);
  std::unique_ptr<std::thread> looker_ GUARDED_BY(mu_);
  std::optional<Departed::Look> look_ GUARDED_BY(mu_);  // until it is over
  CondVar delivered_;                                   // perhaps
  size_t awaiting_ GUARDED_BY(mu_) = 0;                 // threads that wait for it
  int parked_ GUARDED_BY(mu_) = 0;
  bool attending_ GUARDED_BY(mu_) = false;  // it runs though it is parked
  bool ending_ GUARDED_BY(mu_) = false;     // the thread is being waited for
  std::atomic<pid_t> thread_id_{0};
  std::atomic<pid_t> looker_id_{0};
  std::atomic<bool> stop_looking_{false};
  std::atomic<int> callers_{0};  // who want the lock: the thread lets them have it
};

}  // namespace pgalloc
