// Purpose: peers that have lost their connection. What they hold they hold until their process cannot
// see it any more; then it is given back, a piece at a time.
//
// Thread safety: externally synchronised (the broker's lock), but for Look, which is for the broker's
// thread without the lock.
//
// Invariants
//   1. A session is seen, or ending, or finished. It moves on only, and nothing is allocated for that:
//      its place was made together with its channel.
//   2. What is finished holds nothing. It is destroyed without the lock: it may be a file's last owner.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <vector>

#include "sharing/peer_process.h"
#include "sharing/session.h"

namespace pgalloc {

class Departed {
 public:
  struct Entry {
    std::unique_ptr<Session> session;
    std::optional<PeerProcess> process;  // unless it holds nothing, or never lived
    SteadyTime next_look;
    std::chrono::nanoseconds pause{};
    SteadyTime rests_until{};  // its process does: looks at it take long
  };
  using Place = std::list<Entry>;
  static Place make_place() { return Place(1); }

  explicit Departed(Offers& offers) : offers_(offers) {}

  // REQUIRES: `place` is from make_place().
  void add(Place place, std::unique_ptr<Session> session, std::optional<PeerProcess> process,
           SteadyTime now) noexcept;

  // Which process to look at now, if there is one to look at: one look for all of its sessions, or for
  // many. There is no other look until this one is over; until then `process` lives.
  struct Look {
    struct Of {
      uint64_t session = 0;
      std::vector<FileIdentity> files;
      bool sees = true;
    };
    const PeerProcess* process = nullptr;
    std::vector<Of> sessions;
    // Without the lock. Also says that all is seen once *stop is true.
    void take(const std::atomic<bool>* stop = nullptr) noexcept;
  };
  static constexpr size_t kSessionsAtOnce = 256;
  std::optional<Look> next_look(SteadyTime now);
  // It took so long: a process is looked at for a tenth of the time at most.
  void looked(const Look& look, SteadyTime now, std::chrono::nanoseconds took = {}) noexcept;
  // Of the next look; none while there is one.
  std::optional<SteadyTime> next_time() const;
  // Gives back some of what those held who are ending.
  void end_some(size_t ranges_max);
  bool ending() const { return !ending_.empty(); }

  // To be destroyed without the lock.
  Place take_finished() noexcept;
  size_t size() const { return seen_.size() + ending_.size(); }
  template <class Visit>
  void visit(Visit visit) const {
    for (const Entry& entry : seen_) visit(*entry.session);
    for (const Entry& entry : ending_) visit(*entry.session);
  }

 private:
  void end(Place& from, Place::iterator entry, SteadyTime now) noexcept;

  Offers& offers_;
  Place seen_;
  Place ending_;
  Place finished_;
  bool looking_ = false;
};

}  // namespace pgalloc
