#include "guard/write_watch.h"

#include <sys/inotify.h>

#include <array>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "os/folder.h"
#include "os/syscalls.h"

namespace pgalloc {

using os::sys;

namespace {

// Of v1 and v2.
constexpr std::array kLists{"/cgroup.procs", "/tasks", "/cgroup.threads"};

}  // namespace

WriteWatch WriteWatch::open() {
  WriteWatch watch;
  watch.events_ = os::Descriptor(sys().watch_writes());
  return watch;
}

void WriteWatch::add_file(const std::string& path) const {
  if (events_.intact()) (void)sys().watch_writes_to(events_.fd(), path.c_str());
}

// The nearest to the top first.
void WriteWatch::add_groups(std::string directory) {
  std::vector<std::string> found{std::move(directory)};
  for (size_t next = 0; next < found.size(); ++next) {
    if (groups_.size() >= kGroupsMax || !events_.intact()) return;
    const std::string group = found[next];
    // First of all: a group that is made below it from now on is heard of.
    const int number = sys().watch_folder(events_.fd(), group.c_str());
    if (number < 0) continue;
    groups_[number] = group;
    for (const char* list : kLists) add_file(group + list);
    os::visit_folder(group, [&](const os::FolderEntry& entry) {
      if (entry.may_be_folder) found.push_back(group + "/" + std::string(entry.name));
      return true;
    });
  }
}

bool WriteWatch::take() {
  if (!events_.intact()) return false;
  alignas(inotify_event) std::array<char, 4096> buffer;
  const ssize_t length = sys().read(events_.fd(), buffer.data(), buffer.size());
  if (length <= 0) return false;
  try {
    hear({buffer.data(), static_cast<size_t>(length)});
  } catch (const std::bad_alloc&) {  // NOLINT: invariant 1
  }
  return true;
}

void WriteWatch::hear(std::string_view events) {
  while (events.size() >= sizeof(inotify_event)) {
    inotify_event event;
    std::memcpy(&event, events.data(), sizeof event);
    const std::string_view padded = events.substr(sizeof event, event.len);
    events.remove_prefix(sizeof event + padded.size());
    const auto group = groups_.find(event.wd);
    if (group == groups_.end()) continue;
    if ((event.mask & IN_IGNORED) != 0) {  // it was removed
      groups_.erase(group);
    } else if ((event.mask & IN_ISDIR) != 0) {
      add_groups(group->second + "/" + padded.data());
    }
  }
}

}  // namespace pgalloc
