#include "guard/memory_level.h"

#include <fcntl.h>

#include <algorithm>
#include <string_view>

#include "guard/kernel_file.h"
#include "os/retry.h"
#include "os/syscalls.h"

namespace pgalloc {

using os::retry_interrupted;
using os::sys;

namespace {

uint64_t less(uint64_t a, uint64_t b) { return a - std::min(a, b); }

}  // namespace

std::optional<MemoryLevel> MemoryLevel::open(const LevelFiles& files) {
  MemoryLevel level;
  level.files_ = files;
  switch (files.kind) {
    case LevelFiles::Kind::kMachine:
      level.usage_ = open_kernel_file(files.path);
      break;
    case LevelFiles::Kind::kV1:
      level.usage_ = open_kernel_file(files.path + "/memory.usage_in_bytes");
      level.stat_ = open_kernel_file(files.path + "/memory.stat");
      level.hits_ = open_kernel_file(files.path + "/memory.failcnt");
      break;
    case LevelFiles::Kind::kAboveV1:
      level.usage_ = open_kernel_file(files.path + "/memory.usage_in_bytes");
      level.stat_ = open_kernel_file(files.group + "/memory.stat");
      break;
    case LevelFiles::Kind::kV2:
      level.usage_ = open_kernel_file(files.path + "/memory.current");
      level.stat_ = open_kernel_file(files.path + "/memory.stat");
      level.events_ = open_kernel_file(files.path + "/memory.events");
      break;
  }
  if (!level.usage_.open()) return std::nullopt;
  for (const std::string& path : level.limit_files()) {
    level.limits_.push_back(open_kernel_file(path));
  }
  return level;
}

std::vector<std::string> MemoryLevel::limit_files() const {
  switch (files_.kind) {
    case LevelFiles::Kind::kV1:
      return {files_.path + "/memory.limit_in_bytes"};
    case LevelFiles::Kind::kV2:
      return {files_.path + "/memory.max", files_.path + "/memory.high"};
    default:
      return {};
  }
}

uint64_t MemoryLevel::limit() const {
  uint64_t limit = kUnlimited;
  for (const os::Descriptor& file : limits_) {
    limit = std::min(limit, KernelText(file).number().value_or(kUnlimited));
  }
  if (files_.kind == LevelFiles::Kind::kAboveV1) {
    limit = KernelText(stat_).number_of("hierarchical_memory_limit").value_or(kUnlimited);
  }
  return limit < kUnlimited ? limit : UINT64_MAX;
}

std::optional<MemoryLevel::Reading> MemoryLevel::read(Depth depth) const {
  if (files_.kind == LevelFiles::Kind::kMachine) return read_machine();
  const auto usage = KernelText(usage_).number();
  if (!usage) return std::nullopt;
  Reading reading;
  reading.usage = *usage;
  reading.limit = limit();
  if (depth == Depth::kUsage || (depth == Depth::kCache && !reading.limited())) return reading;
  read_cache(reading);
  if (depth == Depth::kEverything) read_rest(reading);
  return reading;
}

void MemoryLevel::read_cache(Reading& reading) const {
  const KernelText stat(stat_);
  const auto figure = [&](std::string_view v1_name, std::string_view v2_name) {
    return stat.number_of(files_.is_v1() ? v1_name : v2_name).value_or(0);
  };
  // v1 has figures of the group alone, too; what is charged are those of the whole subtree.
  const uint64_t pages =
      figure("total_inactive_file", "inactive_file") + figure("total_active_file", "active_file");
  const uint64_t unwritten =
      figure("total_dirty", "file_dirty") + figure("total_writeback", "file_writeback");
  const uint64_t slab = files_.is_v1() ? 0 : figure("", "slab_reclaimable");
  reading.reclaimable = less(pages, unwritten) + slab / 2;
  reading.cache = pages + slab;
  if (!files_.is_v1()) reading.kernel = figure("", "kernel");
}

// Swap: of v1 what memory and swap together leave beside the limit, of v2 what its own limit leaves.
void MemoryLevel::read_rest(Reading& reading) const {
  const std::string& path = files_.path;
  switch (files_.kind) {
    case LevelFiles::Kind::kV1: {
      reading.kernel = number_in(path + "/memory.kmem.usage_in_bytes").value_or(0);
      const auto both = number_in(path + "/memory.memsw.limit_in_bytes");
      if (both && *both < kUnlimited) {
        const auto used = number_in(path + "/memory.memsw.usage_in_bytes").value_or(reading.usage);
        const uint64_t swapped = less(used, reading.usage);
        reading.swap_room = less(less(*both, std::min(*both, reading.limit)), swapped);
      }
      if (number_in(path + "/memory.swappiness") == uint64_t{0}) reading.swap_room = 0;
      break;
    }
    case LevelFiles::Kind::kV2:
      if (const auto most = number_in(path + "/memory.swap.max")) {
        reading.swap_room = less(*most, number_in(path + "/memory.swap.current").value_or(0));
      }
      break;
    default:
      break;
  }
}

std::optional<MemoryLevel::Reading> MemoryLevel::read_machine() const {
  const KernelText text(usage_);
  const auto total = text.number_of("MemTotal:");
  const auto available = text.number_of("MemAvailable:");
  if (!total || !available) return std::nullopt;
  constexpr uint64_t kKilo = 1024;
  Reading reading;
  reading.limit = *total * kKilo;
  reading.usage = less(*total, *available) * kKilo;
  reading.swap_room = text.number_of("SwapFree:").value_or(0) * kKilo;
  return reading;
}

bool MemoryLevel::ask_for_events(int event_fd, int file, const std::string& argument) const {
  const os::Descriptor control(retry_interrupted([&] {
    return sys().open((files_.path + "/cgroup.event_control").c_str(), O_WRONLY | O_CLOEXEC, 0);
  }));
  if (!control.open()) return false;
  const std::string request =
      std::to_string(event_fd) + " " + std::to_string(file) + " " + argument;
  return retry_interrupted([&] {
           return sys().write(control.fd(), request.data(), request.size());
         }) == static_cast<ssize_t>(request.size());
}

bool MemoryLevel::set_usage_threshold(int event_fd, uint64_t bytes) const {
  return ask_for_events(event_fd, usage_.fd(), std::to_string(bytes));
}

bool MemoryLevel::tell_of_vain_reclaim(int event_fd) const {
  const os::Descriptor pressure = open_kernel_file(files_.path + "/memory.pressure_level");
  // "local": not what happens in groups below.
  return pressure.open() && ask_for_events(event_fd, pressure.fd(), "critical,local");
}

std::optional<uint64_t> MemoryLevel::hits() const {
  return hits_.open() ? KernelText(hits_).number() : std::nullopt;
}

// Only there lies a release agent's name.
bool MemoryLevel::is_root() const {
  return open_kernel_file(files_.path + "/release_agent").open();
}

void MemoryLevel::read_events() const {
  if (events_.intact()) (void)KernelText(events_);
}

bool MemoryLevel::intact() const {
  const auto is_closed = [](const os::Descriptor& file) { return file.open() && !file.intact(); };
  return !is_closed(usage_) && !is_closed(stat_) && !is_closed(hits_) && !is_closed(events_) &&
         std::none_of(limits_.begin(), limits_.end(), is_closed);
}

}  // namespace pgalloc
