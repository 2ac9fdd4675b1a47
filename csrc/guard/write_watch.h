// Purpose: hears of writes to files of cgroups (inotify): to those that hold limits, and to the lists of
// processes, through which processes are moved from one group to another.
//
// Thread safety: externally synchronised (the guard's lock).
//
// Invariants
//   1. It is never relied on: the kernel does not tell of what is written in another cgroup namespace,
//      and only the first kGroupsMax groups of a hierarchy are watched.
//   2. When take() returns, the lists of the new groups that it has read of are watched, as far as there was
//      memory. A process that was moved into one before that has been moved by then, so a look at its
//      place finds it.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <unordered_map>

#include "os/descriptor.h"

namespace pgalloc {

class WriteWatch {
 public:
  static constexpr size_t kGroupsMax = 64;

  // One that hears of nothing.
  WriteWatch() = default;
  // The same if there is no descriptor for it.
  static WriteWatch open();

  void add_file(const std::string& path) const;
  // All groups from this one down, now and later.
  void add_groups(std::string directory);

  // To be polled for POLLIN, and taken from then. Not open if nothing is heard.
  const os::Descriptor& events() const { return events_; }
  // Whether anything was written, or groups were made. Where memory runs out it misses some of those. It
  // takes a few KiB of events, however many come: the caller has a lock that others wait for.
  bool take();

 private:
  void hear(std::string_view events);

  os::Descriptor events_;
  std::unordered_map<int, std::string> groups_;  // by the number of the watch on their folder
};

}  // namespace pgalloc
