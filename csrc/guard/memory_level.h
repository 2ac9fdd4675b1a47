// Purpose: one limit that memory can run into: a level of the cgroup path, or the machine. Reads
// the kernel's files about it; knows their formats and nothing else.
//
// Thread safety: externally synchronised (the guard's lock).
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
  enum class Kind : uint8_t { kV1, kV2, kMachine };
  Kind kind = Kind::kMachine;
  std::string path;  // of the cgroup's directory, or of meminfo
};

class MemoryLevel {
 public:
  struct Reading {
    uint64_t limit = UINT64_MAX;  // none
    uint64_t usage = 0;
    // Page cache of ordinary files: clean and not used lately, which the kernel drops before it
    // kills; and all of it.
    uint64_t reclaimable = 0;
    uint64_t file_cache = 0;
    uint64_t swap_free = 0;  // of the machine

    bool limited() const { return limit != UINT64_MAX; }
    // What can be committed before the limit is hit.
    uint64_t available() const {
      const uint64_t needed = usage - (reclaimable < usage ? reclaimable : usage);
      return limit > needed ? limit - needed : 0;
    }
  };

  // Nothing if the files are not there.
  static std::optional<MemoryLevel> open(const LevelFiles& files);

  // The cheap part: two or three short files. With `all`, the page cache too, which costs more than
  // the rest. Nothing if the level is gone.
  std::optional<Reading> read(bool all) const;

  const LevelFiles& files() const { return files_; }
  bool has_usage_threshold() const { return files_.kind == LevelFiles::Kind::kV1; }
  // v1: the eventfd is written to when usage crosses `bytes`, until it is closed. False if the
  // kernel refuses.
  bool set_usage_threshold(int event_fd, uint64_t bytes) const;
  // v2: to be polled for POLLPRI, and read() then; -1 if there is none.
  int events_fd() const { return events_.get(); }
  void read_events() const;

 private:
  std::optional<Reading> read_machine() const;

  LevelFiles files_;
  os::Descriptor usage_;  // or meminfo
  std::vector<os::Descriptor> limits_;
  os::Descriptor stat_;
  os::Descriptor events_;
};

}  // namespace pgalloc
