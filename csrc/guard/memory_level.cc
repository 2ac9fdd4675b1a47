#include "guard/memory_level.h"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <string_view>

#include "os/retry.h"

namespace pgalloc {

using os::retry_interrupted;
using os::sys;

namespace {

// "Unlimited" in v1 is LONG_MAX rounded down to a page. No machine has 2^62 bytes.
constexpr uint64_t kUnlimited = uint64_t{1} << 62;

// A file of the kernel, as text. memory.stat of Linux 6 has about 2 KiB, meminfo 1.5.
class Text {
 public:
  explicit Text(const os::Descriptor& file) {
    const ssize_t size = retry_interrupted(
        [&] { return sys().pread(file.get(), buffer_.data(), buffer_.size(), 0); });
    if (size > 0) text_ = {buffer_.data(), static_cast<size_t>(size)};
  }
  std::string_view text() const { return text_; }
  // Of "123\n"; nothing for "max\n" or an unreadable file.
  std::optional<uint64_t> number() const { return number_at(text_); }
  // Of the line "<name> 123" or "<name>   123 kB".
  std::optional<uint64_t> number_of(std::string_view name) const {
    for (size_t at = text_.find(name); at != std::string_view::npos;
         at = text_.find(name, at + 1)) {
      if (at != 0 && text_[at - 1] != '\n') continue;
      std::string_view rest = text_.substr(at + name.size());
      const size_t digits = rest.find_first_not_of(' ');
      if (digits == 0 || digits == std::string_view::npos) continue;
      return number_at(rest.substr(digits));
    }
    return std::nullopt;
  }

 private:
  static std::optional<uint64_t> number_at(std::string_view text) {
    uint64_t value = 0;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
    if (result.ec != std::errc()) return std::nullopt;
    return value;
  }
  std::array<char, 8192> buffer_;
  std::string_view text_;
};

os::Descriptor open_file(const std::string& path, int flags = O_RDONLY) {
  return os::Descriptor(
      retry_interrupted([&] { return sys().open(path.c_str(), flags | O_CLOEXEC, 0); }));
}

}  // namespace

std::optional<MemoryLevel> MemoryLevel::open(const LevelFiles& files) {
  MemoryLevel level;
  level.files_ = files;
  std::vector<const char*> limits;
  switch (files.kind) {
    case LevelFiles::Kind::kMachine:
      level.usage_ = open_file(files.path);
      break;
    case LevelFiles::Kind::kV1:
      level.usage_ = open_file(files.path + "/memory.usage_in_bytes");
      limits = {"/memory.limit_in_bytes"};
      break;
    case LevelFiles::Kind::kV2:
      level.usage_ = open_file(files.path + "/memory.current");
      limits = {"/memory.max", "/memory.high"};
      level.events_ = open_file(files.path + "/memory.events");
      break;
  }
  if (!level.usage_) return std::nullopt;
  for (const char* name : limits) level.limits_.push_back(open_file(files.path + name));
  if (!limits.empty()) level.stat_ = open_file(files.path + "/memory.stat");
  return level;
}

std::optional<MemoryLevel::Reading> MemoryLevel::read(bool all) const {
  if (files_.kind == LevelFiles::Kind::kMachine) return read_machine();
  const auto usage = Text(usage_).number();
  if (!usage) return std::nullopt;
  Reading reading;
  reading.usage = *usage;
  for (const os::Descriptor& file : limits_) {
    const uint64_t limit = file ? Text(file).number().value_or(UINT64_MAX) : UINT64_MAX;
    if (limit < kUnlimited) reading.limit = std::min(reading.limit, limit);
  }
  if (!all || !reading.limited() || !stat_) return reading;
  const Text stat(stat_);
  // v1 has figures of the group alone, too; what is charged are those of the whole subtree.
  const bool v1 = files_.kind == LevelFiles::Kind::kV1;
  const auto figure = [&](std::string_view v1_name, std::string_view v2_name) {
    return stat.number_of(v1 ? v1_name : v2_name).value_or(0);
  };
  const uint64_t inactive = figure("total_inactive_file", "inactive_file");
  const uint64_t active = figure("total_active_file", "active_file");
  const uint64_t unwritten =
      figure("total_dirty", "file_dirty") + figure("total_writeback", "file_writeback");
  reading.reclaimable = inactive - std::min(inactive, unwritten);
  reading.file_cache = inactive + active;
  return reading;
}

std::optional<MemoryLevel::Reading> MemoryLevel::read_machine() const {
  const Text text(usage_);
  const auto total = text.number_of("MemTotal:");
  const auto available = text.number_of("MemAvailable:");
  if (!total || !available) return std::nullopt;
  constexpr uint64_t kKilo = 1024;
  Reading reading;
  reading.limit = *total * kKilo;
  reading.usage = (*total - std::min(*total, *available)) * kKilo;
  reading.swap_free = text.number_of("SwapFree:").value_or(0) * kKilo;
  return reading;
}

bool MemoryLevel::set_usage_threshold(int event_fd, uint64_t bytes) const {
  const os::Descriptor control = open_file(files_.path + "/cgroup.event_control", O_WRONLY);
  if (!control) return false;
  const std::string request =
      std::to_string(event_fd) + " " + std::to_string(usage_.get()) + " " + std::to_string(bytes);
  return retry_interrupted([&] {
           return sys().write(control.get(), request.data(), request.size());
         }) == static_cast<ssize_t>(request.size());
}

void MemoryLevel::read_events() const { (void)Text(events_); }

}  // namespace pgalloc
