#include "sharing/payer.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <optional>
#include <vector>

#include "file/file_registry.h"
#include "guard/guard.h"
#include "guard/kernel_file.h"
#include "guard/memory_group.h"

namespace pgalloc {

namespace {

constinit std::atomic<const char*> proc{"/proc"};

std::optional<std::string> cgroup_file_of(const std::string& process) {
  return whole_file(std::string(proc.load()) + "/" + process + "/cgroup");
}

// The memory cgroups that a process is charged to; none if they are not to be seen.
std::vector<LevelFiles> groups_of(pid_t pid) {
  if (pid <= 0) return {};
  const auto group = find_memory_group({.proc = proc.load(), .root = "/"}, std::to_string(pid));
  return group && group->exact ? charged_levels(*group) : std::vector<LevelFiles>{};
}

}  // namespace

void testing::look_for_payers_in(const char* folder) { proc = folder; }

std::string payer_of(pid_t pid, uint64_t number) {
  const auto ours = cgroup_file_of("self");
  const auto theirs = pid > 0 ? cgroup_file_of(std::to_string(pid)) : std::nullopt;
  if (!ours || !theirs) return "connection " + std::to_string(number);
  const std::string group = charged_path(*theirs);
  return group == charged_path(*ours) ? std::string() : group;
}

uint64_t make_room_for(const std::string& payer, pid_t pid, uint64_t bytes_max, uint64_t commit) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(2);
  uint64_t given_back = 0;
  if (!payer.empty()) {
    given_back = FileRegistry::discard_paid_by(payer, bytes_max, deadline);
    if (given_back >= bytes_max) return given_back;
  }
  const uint64_t missing = bytes_max - given_back;
  const uint64_t wanted = std::max(commit, missing);
  Guard& guard = Guard::instance();
  const bool lacks = payer.empty() ? guard.lacks(wanted) : guard.lacks(wanted, groups_of(pid));
  if (!lacks) return given_back;
  given_back += FileRegistry::all().release_kept(deadline);
  if (given_back >= bytes_max) return given_back;
  return given_back + FileRegistry::all().discard(missing, deadline).given_back;
}

}  // namespace pgalloc
