#include "sharing/payer.h"

#include <atomic>
#include <chrono>
#include <optional>

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

}  // namespace

void testing::look_for_payers_in(const char* folder) { proc = folder; }

std::string payer_of(pid_t pid, uint64_t number) {
  const auto ours = cgroup_file_of("self");
  const auto theirs = pid > 0 ? cgroup_file_of(std::to_string(pid)) : std::nullopt;
  if (!ours || !theirs) return "connection " + std::to_string(number);
  const std::string group = charged_path(*theirs);
  return group == charged_path(*ours) ? std::string() : group;
}

uint64_t make_room_for(const std::string& payer, uint64_t bytes_max) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(2);
  if (!payer.empty()) return FileRegistry::discard_paid_by(payer, bytes_max, deadline);
  if (!Guard::instance().lacks(bytes_max)) return 0;
  return FileRegistry::all().discard(bytes_max, deadline).given_back;
}

}  // namespace pgalloc
