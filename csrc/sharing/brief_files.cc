#include "sharing/brief_files.h"

#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "os/folder.h"
#include "os/syscalls.h"
#include "sharing/wire.h"

namespace pgalloc {

using os::sys;

namespace {

constexpr std::string_view kStart = ".pgalloc-";
constexpr size_t kDigits = 16;
constexpr int kRemovedMax = 64;
constexpr time_t kAge_s = 60;

// No other program's, nor a path that a user has chosen for a server.
bool is_brief(std::string_view name) {
  if (name.size() != kStart.size() + kDigits || !name.starts_with(kStart)) return false;
  name.remove_prefix(kStart.size());
  return std::ranges::all_of(
      name, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

// Those that are used are younger: their processes remove them at once.
bool is_left(const std::string& path) {
  struct stat status{};
  return sys().lstat(path.c_str(), &status) == 0 && S_ISSOCK(status.st_mode) &&
         status.st_uid == ::geteuid() && status.st_mtime < ::time(nullptr) - kAge_s;
}

}  // namespace

Result<std::string> name_of_brief_file() {
  wire::Secret random{};
  PGALLOC_RETURN_IF_ERROR(wire::make_secret(&random));
  uint64_t unique = 0;
  std::memcpy(&unique, random.data(), sizeof unique);
  char digits[kDigits + 1];
  std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(unique));
  return std::string(kStart) + digits;
}

void remove_left_files(const std::string& folder) {
  int removed = 0;
  os::visit_folder(folder, [&](const os::FolderEntry& entry) {
    if (!is_brief(entry.name)) return true;
    const std::string path = folder + "/" + std::string(entry.name);
    if (!is_left(path)) return true;
    if (removed++ == kRemovedMax) return false;
    sys().unlink(path.c_str());
    return true;
  });
}

}  // namespace pgalloc
