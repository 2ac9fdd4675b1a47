// Purpose: a peer's connection to the owner of pages: requests and their answers, and what is given
// back, which has no answer. Handles end anywhere (in a finalizer, in the middle of another request, at
// interpreter exit), so giving back waits for nothing: ranges are queued, and sent by the next request
// or by a thread of the core. That never takes the GIL.
//
// Thread safety: any thread, but for what is for forks: see there.
//
// Invariants
//   1. What is sent keeps its order (see Outbox): what was let go of before a request is back when it is
//      done.
//   2. Each answer reaches its Exchange once: the thread that receives it calls arrived(). If what it
//      brought is not wanted any more, the asker calls undo(), or that thread if the asker has given up.
//      An answer that was sent before the owner's end arrives, too, also if a fork keeps it back.
//   3. One thread at a time reads: an asker, or the link's own thread while an answer is due that no
//      asker waits for.
//   4. Once the owner has gone nothing is sent any more: the kernel has told it what this process held.
//   5. In a forked child nothing is sent on the parent's behalf, and the parent's socket is closed.
//   6. A lease that has arrived is a file's, or is among loose_leases().
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/listed.h"
#include "base/mutex.h"
#include "base/process_generation.h"
#include "base/status.h"
#include "base/units.h"
#include "sharing/endpoint.h"
#include "sharing/outbox.h"
#include "sharing/peer_process.h"
#include "sharing/wire.h"

namespace pgalloc {

class OwnerLink : public std::enable_shared_from_this<OwnerLink>,
                  public Listed<OwnerLink, LockRank::kLinks> {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // How long an asker waits. keep_waiting() is called without any lock when a signal has come, and a
  // few times a second; false ends the wait.
  struct Patience {
    Time deadline;
    std::function<bool()> keep_waiting;
  };
  struct Reply {
    std::string_view payload;
    int descriptor = -1;  // the link's, unless it is taken
    void close_descriptor();
  };
  // What becomes of a good answer. Called without a lock, by any thread. If arrived() throws a
  // std::bad_alloc, it has taken nothing: leases that the answer brought are given back.
  struct Exchange {
    std::function<void(Reply&)> arrived;
    std::function<void()> undo;
  };

  // Who is at the other end, as far as it is known: what is sent on refers to the owner by this.
  struct Owner {
    pid_t pid = 0;
    std::string name;  // empty: only this connection knows it
    std::string path;
    wire::Secret secret{};
    uint64_t uid = 0;
  };

  // Takes over a connected socket, also if it fails.
  static Result<std::shared_ptr<OwnerLink>> create(int fd);
  // The socket stays the caller's, which closes it: no number of a descriptor is in the hands of Python
  // code that a signal handler may interrupt.
  static Result<std::shared_ptr<OwnerLink>> duplicate(int socket);
  static Result<std::shared_ptr<OwnerLink>> create(Endpoint socket);
  ~OwnerLink() = default;
  OwnerLink(const OwnerLink&) = delete;
  OwnerLink& operator=(const OwnerLink&) = delete;

  // Asks, and waits for the answer. What the owner answers if it refuses; kOwnerGone; kTimedOut if the
  // deadline passed, and kInterrupted if keep_waiting() said so: then the request goes on without its
  // asker, and what it brings is given back.
  Status request(wire::Op op, const std::string& payload, Exchange exchange,
                 const Patience& patience);
  // The same in two steps, for several owners at a time. nullptr if the owner has gone.
  struct Pending;
  using Question = std::shared_ptr<Pending>;
  Question ask(wire::Op op, const std::string& payload, Exchange exchange);
  Status await(const Question& question, const Patience& patience);
  // Asks, and does not wait. Nothing happens if the owner has gone.
  void post(wire::Op op, const std::string& payload, Exchange exchange);

  // One lease on each page of `range` is given back, soon.
  void give_back(uint64_t file, FileRange range);
  // The next so many calls of give_back() need no memory.
  void make_room_to_give_back(size_t count) EXCLUDES(mu_);
  // Waits until all that was given back is on its way. False if the deadline passed first.
  bool flush(Time deadline);

  // Whether this process is its own peer.
  bool is_to_this_process() const;
  // Asks the owner to discard so many bytes, so that `commit` bytes fit, and waits for that shortly. The
  // bytes that went: 0 if it has nothing to give or does not answer, and at once for a while after that.
  uint64_t ask_for_room(uint64_t bytes, uint64_t commit);
  // How long an owner that has none, or that does not answer, is not asked again. For tests: other times.
  inline static std::chrono::nanoseconds no_room_pause{std::chrono::milliseconds(100)};
  inline static std::chrono::nanoseconds no_answer_pause{std::chrono::seconds(1)};
  // Whether it may have some.
  bool may_have_room() const { return may_have_room_.load(std::memory_order_relaxed); }
  // Something of its pages was unpinned here.
  void note_unpinned() {
    may_have_room_.store(true, std::memory_order_relaxed);
    no_room_until_.store({}, std::memory_order_relaxed);
  }

  // How long askers wait that do not say it.
  std::chrono::nanoseconds usual_patience() const { return usual_patience_.load(); }
  void set_usual_patience(std::chrono::nanoseconds longest) { usual_patience_ = longest; }

  Owner owner() const EXCLUDES(mu_);
  void set_owner(Owner owner) EXCLUDES(mu_);
  uint64_t number() const { return number_; }  // unlike all others of this process, and its parents

  // A lease that has arrived is no file's yet, or is one's by now.
  void note_loose(const wire::Pages& pages) EXCLUDES(mu_);
  void forget_loose(const wire::Pages& pages) EXCLUDES(mu_);
  // Files that use this link.
  void begin_file() { ++files_; }
  void end_file() { --files_; }

  // The owner has gone: nothing is sent any more.
  void break_off();
  // The same once answers that no asker waits for have come, and all is sent. Nothing new is asked.
  void break_off_when_settled();
  bool broken() const { return broken_.load(std::memory_order_acquire); }
  // Whether the owner has gone: true may come late.
  bool has_hung_up();
  // Whether answers are due that no asker waits for any more, and that may bring something.
  bool awaits_answers();
  // Whether the owner's process is known to have ended: it gives nothing of its to others any more. A
  // connection that broke says nothing of that.
  bool owner_has_ended();
  // The same, for when its connection has broken: a process that ends closes its descriptors before it has
  // ended for others, so it is waited for.
  bool owner_ends(int patience_ms);
  static constexpr int kOwnersEndAtFork_ms = 200;
  // Whether the owner lives, but not this connection: it may have taken back by now what this process
  // had not mapped before. An owner that is about to end is waited for, two seconds at most.
  bool is_cut_off() EXCLUDES(mu_);

  // --- For Forks: one thread at a time -----------------------------------------------------------

  // The links of this process whose owners are there.
  static std::vector<std::shared_ptr<OwnerLink>> all();
  // Stops the threads of all links, and allows them again.
  static void park_all();
  static void resume_all();

  // From here on answers are kept, but those to Op::kFork: no lease arrives. False if one was on its
  // way for so long.
  bool hold_answers(Time deadline);
  void let_answers_in();
  // Asks for a connection for a child, with the leases this process has: an Endpoint that is not open
  // if there is none to be had. nullptr if there is nothing to ask for.
  struct ChildSocket {
    Question question;
    std::shared_ptr<Endpoint> socket;
  };
  std::optional<ChildSocket> ask_for_child();
  Endpoint await_child(const ChildSocket& asked, Time deadline);
  // What has arrived for no file yet: the child has leases there, too, and no handle.
  std::vector<wire::Pages> loose_leases() const EXCLUDES(mu_);

  // In a forked child: closes the parent's socket. Peers are known by it.
  void leave_to_parent();
  static void reset_in_child() { all_parked_ = false; }
  // In a forked child, which was born with this link: says who it is. False if that could not be sent.
  bool introduce();

 private:
  struct Arrived {
    uint8_t status = 0;
    uint32_t number = 0;
    Reply reply;
    bool lost_descriptor = false;
  };
  struct Held {
    Arrived arrived;
    std::string payload;
  };

  OwnerLink(Endpoint socket, bool waits, PeerProcess owner);
  static void destroy(OwnerLink* link);
  bool leave_to_thread() EXCLUDES(mu_);
  bool forked() const { return generation_ != process_generation(); }
  void stop_thread() EXCLUDES(mu_);
  void resume() EXCLUDES(mu_);
  void park() EXCLUDES(mu_);
  bool stops() const REQUIRES(mu_) {
    return orphaned_ ? broken() || outgoing_.empty() : parked_ || all_parked_ || broken();
  }
  void wake_thread() REQUIRES(mu_);
  void run() EXCLUDES(mu_);
  uint32_t enqueue(wire::Op op, const std::string& payload, const std::shared_ptr<Pending>& pending)
      REQUIRES(mu_);
  bool send_queued() REQUIRES(mu_);
  void end(const char* why) REQUIRES(mu_);
  void destroy_ended() REQUIRES(mu_);
  bool is_over() REQUIRES(mu_);
  void work() REQUIRES(mu_);
  bool read(Time until) REQUIRES(mu_);
  Endpoint::Io receive(Time until, Endpoint::Received* received) REQUIRES(mu_);
  void dispatch(Arrived arrived) REQUIRES(mu_);
  static Status settle(Arrived& arrived, const Pending& pending);
  void hold(Arrived arrived, Pending& pending) REQUIRES(mu_);
  void take_back(const Arrived& arrived, const Pending& pending) REQUIRES(mu_);
  Status give_up(const std::shared_ptr<Pending>& pending, Status why) REQUIRES(mu_);

  static std::atomic<bool> all_parked_;

  const uint32_t generation_ = process_generation();
  const uint64_t number_;
  std::atomic<int> files_{0};
  std::atomic<bool> broken_{false};
  std::atomic<std::chrono::nanoseconds> usual_patience_{std::chrono::seconds(60)};
  std::atomic<bool> may_have_room_{false};
  std::atomic<Time> no_room_until_{};
  const bool waits_;  // the socket's timeout is set
  const PeerProcess owner_process_;
  std::atomic<bool> owner_has_ended_{false};
  mutable Mutex mu_{LockRank::kOwnerLink};
  CondVar changed_;  // for askers
  CondVar work_;     // for the thread
  static constexpr size_t kBufferSize = wire::kPacketBytesMax + 1;
  const std::unique_ptr<char[]> buffer_{new char[kBufferSize]};  // of the thread that reads
  Endpoint socket_;  // closed once it is broken, and no thread reads
  Outbox outgoing_ GUARDED_BY(mu_);
  std::unordered_map<uint32_t, std::shared_ptr<Pending>> pending_ GUARDED_BY(mu_);
  Owner owner_ GUARDED_BY(mu_);
  std::vector<wire::Pages> loose_ GUARDED_BY(mu_);
  uint32_t last_number_ GUARDED_BY(mu_) = 0;
  size_t unattended_ GUARDED_BY(mu_) = 0;  // pending without an asker
  bool reading_ GUARDED_BY(mu_) = false;   // a thread does
  size_t settling_ GUARDED_BY(mu_) = 0;
  bool holding_ GUARDED_BY(mu_) = false;
  std::vector<Held> held_ GUARDED_BY(mu_);
  std::vector<std::shared_ptr<Pending>> ended_ GUARDED_BY(mu_);  // when the owner had gone
  bool ends_ GUARDED_BY(mu_) = false;                            // once it is settled
  bool parked_ GUARDED_BY(mu_) = false;
  bool idle_ GUARDED_BY(mu_) = false;      // the thread sleeps until it is woken up
  bool runs_ GUARDED_BY(mu_) = false;      // the thread does
  bool orphaned_ GUARDED_BY(mu_) = false;  // and destroys it once all is sent
  std::unique_ptr<std::thread> thread_ GUARDED_BY(mu_);
  std::atomic<pid_t> thread_id_{0};
};

}  // namespace pgalloc
