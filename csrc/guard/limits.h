// Purpose: all limits that this process can run into at once: the levels of its memory cgroup, and the
// machine. Says whether one of them changed, or the process was moved.
//
// Thread safety: externally synchronised (the guard's lock).
//
// Invariants
//   1. Followed levels are those of the group that /proc/self/cgroup named at the last refresh().
//   2. A limit above the mount point counts only where no visible level explains it.
//   3. generation() changes whenever other levels are watched.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "guard/memory_group.h"
#include "guard/memory_level.h"
#include "guard/write_watch.h"
#include "os/descriptor.h"

namespace pgalloc {

class Limits {
 public:
  struct Watched {
    MemoryLevel level;
    MemoryLevel::Reading reading;
    uint64_t limit = UINT64_MAX;  // at the last refresh
    // v1: eventfds of the kernel's, and the usage at which the first is written to.
    os::Descriptor threshold = {};
    uint64_t threshold_bytes = 0;
    os::Descriptor vain_reclaim = {};
    // How often a charge met the limit, lately and a while before.
    uint64_t hits = 0;
    uint64_t hits_before = 0;
    // An operator tries to set a limit below the usage: as if this was it, for a while.
    uint64_t yields_to = UINT64_MAX;

    // What it said last, with that in mind.
    MemoryLevel::Reading figures() const {
      MemoryLevel::Reading figures = reading;
      figures.limit = std::min(figures.limit, yields_to);
      return figures;
    }
    bool is_machine() const { return level.files().kind == LevelFiles::Kind::kMachine; }
  };

  // What holds for this process now: the levels of its group that have files, its own first, and the
  // machine last.
  static std::vector<std::pair<LevelFiles, MemoryLevel::Reading>> look_around(
      const ProcFiles& where);

  // These, until told otherwise. Those that cannot be read are left out.
  void watch(const std::vector<LevelFiles>& files);
  // The levels of this process, and again when it is moved; and the machine. False if there are none.
  bool follow(const ProcFiles& where);
  // The same at the next refresh().
  void follow_later(ProcFiles where) {
    follows_ = std::move(where);
    incomplete_ = true;
  }
  const std::optional<ProcFiles>& followed() const { return follows_; }
  void clear() { *this = {}; }

  using Time = std::chrono::steady_clock::time_point;

  // To be polled for POLLIN: a limit was written to, or a process was moved, this one perhaps. Not open
  // where the kernel does not tell.
  const os::Descriptor& writes() const { return writes_.events(); }
  // Whether that is so. To be followed by refresh().
  bool take_writes() { return writes_.take(); }
  // Whether a limit changed or the process was moved since the last time, or files of this were closed
  // from outside or could not be opened for want of descriptors: they are opened anew. Costs a short
  // file for each limit and one more.
  bool refresh(Time now);
  // The last of it alone.
  bool moved() const;
  // Reads them all; the page cache of those with less than twice the headroom left.
  template <class HeadroomOf>
  void read(HeadroomOf headroom_of) {
    for (Watched& watched : levels_) {
      // A level that cannot be read any more is as good as gone.
      auto reading = is_idle_above(watched) ? std::nullopt : watched.level.read(Depth::kUsage);
      watched.reading = reading.value_or(MemoryLevel::Reading{});
    }
    drop_what_is_explained();
    for (Watched& watched : levels_) {
      const auto figures = watched.figures();
      if (!figures.limited() || watched.is_machine()) continue;
      if (figures.available() >= 2 * headroom_of(watched)) continue;
      const uint64_t limit = watched.reading.limit;
      watched.reading = watched.level.read(Depth::kCache).value_or(watched.reading);
      watched.reading.limit = limit;
    }
  }
  // Everything of one level, with what invariant 2 says.
  std::optional<MemoryLevel::Reading> look_at(const Watched& watched) const;
  // The smallest limit of a cgroup; UINT64_MAX if there is none.
  uint64_t smallest_of_groups() const;
  // Bytes that the machine and all levels leave this process to swap out.
  uint64_t swap_room() const;

  std::vector<Watched>& levels() { return levels_; }
  const std::vector<Watched>& levels() const { return levels_; }
  // Whether there is nothing to watch, as far as is known.
  bool empty() const { return levels_.empty() && !incomplete_; }
  uint64_t generation() const { return generation_; }

 private:
  using Depth = MemoryLevel::Depth;

  void find();
  void open_levels(const std::vector<LevelFiles>& files);
  void listen(const std::optional<MemoryGroup>& group);
  void take_hits(Time now);
  bool intact() const;
  void reopen();
  bool is_idle_above(const Watched& watched) const;
  void drop_what_is_explained();

  std::vector<Watched> levels_;
  std::optional<ProcFiles> follows_;
  bool listens_ = true;
  WriteWatch writes_;
  os::Descriptor membership_;
  std::string memberships_;
  bool incomplete_ = false;  // they are still to be found, or no descriptors could be had for some
  uint64_t generation_ = 0;
  unsigned refreshes_ = 0;
  Time hits_taken_;
};

}  // namespace pgalloc
