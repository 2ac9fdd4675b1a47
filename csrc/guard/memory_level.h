// Purpose: one limit that memory can run into: a level of the cgroup path, or the machine. Reads
// the kernel's files about it, for the guard and for pgalloc.pressure.info() alike; knows their formats
// and nothing else.
//
// Thread safety: externally synchronised (the guard's lock).
//
// What counts as free (measured in docs/pressure.md):
//   1. Page cache of ordinary files, used lately or not, less what is dirty or being written: the
//      kernel drops it for anything else, within a few MiB of all of it.
//   2. v2: half of the slab that the kernel calls reclaimable. A page of it goes only when all of its
//      objects go. v1 has no figure for it: `kernel` is all that is known there.
//
// Sources: the kernel's Documentation/admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst ("Memory
// Interface Files") and filesystems/proc.rst ("meminfo").
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "os/descriptor.h"

namespace pgalloc {

struct LevelFiles {
  // kAboveV1: what v1 says of limits above the mount point (hierarchical_memory_limit of the group).
  enum class Kind : uint8_t { kV1, kV2, kAboveV1, kMachine };
  Kind kind = Kind::kMachine;
  std::string path;  // of the cgroup's directory (the topmost visible for kAboveV1), or meminfo
  std::string group = {};  // kAboveV1: of the process's own group

  bool is_v1() const { return kind == Kind::kV1 || kind == Kind::kAboveV1; }
  friend bool operator==(const LevelFiles&, const LevelFiles&) = default;
};

class MemoryLevel {
 public:
  struct Reading {
    uint64_t limit = UINT64_MAX;  // none
    uint64_t usage = 0;
    uint64_t reclaimable = 0;         // what the kernel drops before it kills
    uint64_t cache = 0;               // and all that it may drop in the end
    uint64_t kernel = 0;              // memory of the kernel that is charged here, slab included
    uint64_t swap_room = UINT64_MAX;  // what may still be swapped out here; unknown: any amount

    bool limited() const { return limit != UINT64_MAX; }
    // What can be committed before the limit is hit.
    uint64_t available() const {
      const uint64_t needed = usage - (reclaimable < usage ? reclaimable : usage);
      return limit > needed ? limit - needed : 0;
    }
  };
  enum class Depth : uint8_t {
    kUsage,       // limit and usage: two or three short files
    kCache,       // and the page cache, which costs more than the rest
    kEverything,  // and swap, and the kernel's memory
  };

  // Nothing if the files are not there.
  static std::optional<MemoryLevel> open(const LevelFiles& files);

  // Nothing if the level is gone.
  std::optional<Reading> read(Depth depth) const;
  // The limit alone; UINT64_MAX if there is none.
  uint64_t limit() const;

  const LevelFiles& files() const { return files_; }
  // Those that say what limit() says.
  std::vector<std::string> limit_files() const;
  bool is_v1_group() const { return files_.kind == LevelFiles::Kind::kV1; }
  // v1: the eventfd is written to when usage crosses `bytes`, until it is closed. False if the
  // kernel refuses.
  bool set_usage_threshold(int event_fd, uint64_t bytes) const;
  // v1: the same when the kernel looks for memory at this level and finds next to none.
  bool tell_of_vain_reclaim(int event_fd) const;
  // v1: how often a charge met the limit; nothing if the level is gone.
  std::optional<uint64_t> hits() const;
  // v1: of the whole hierarchy.
  bool is_root() const;
  // v2: to be polled for POLLPRI, and read() then; not open if there is none.
  const os::Descriptor& events() const { return events_; }
  void read_events() const;
  // Whether its files are still those that were opened; see os::Descriptor.
  bool intact() const;

 private:
  std::optional<Reading> read_machine() const;
  void read_cache(Reading& reading) const;
  void read_rest(Reading& reading) const;
  bool ask_for_events(int event_fd, int file, const std::string& argument) const;

  LevelFiles files_;
  os::Descriptor usage_;  // or meminfo
  std::vector<os::Descriptor> limits_;
  os::Descriptor stat_;
  os::Descriptor hits_;
  os::Descriptor events_;
};

}  // namespace pgalloc
