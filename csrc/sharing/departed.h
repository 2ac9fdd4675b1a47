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

#include <chrono>
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
  };
  using Place = std::list<Entry>;
  static Place make_place() { return Place(1); }

  explicit Departed(Offers& offers) : offers_(offers) {}

  // REQUIRES: `place` is from make_place().
  void add(Place place, std::unique_ptr<Session> session, std::optional<PeerProcess> process,
           SteadyTime now) noexcept;

  // Which process to look at now, if there is one to look at.
  struct Look {
    const PeerProcess* process = nullptr;
    std::vector<FileIdentity> files;
    bool take() const;
  };
  std::optional<Look> next_look(SteadyTime now);
  void looked(const Look& look, bool sees, SteadyTime now) noexcept;
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
};

}  // namespace pgalloc
