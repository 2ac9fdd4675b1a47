#include "guard/memory_group.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "guard/kernel_file.h"
#include "os/folder.h"

namespace pgalloc {

namespace {

// At every `separator`; without the empty parts if so told.
std::vector<std::string_view> split(std::string_view text, char separator, bool keep_empty) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t end = text.find(separator);
    const std::string_view part = text.substr(0, end);
    if (keep_empty || !part.empty()) parts.push_back(part);
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

std::vector<std::string> words_in(const std::string& path) {
  std::string text = whole_file(path).value_or("");
  std::replace(text.begin(), text.end(), '\n', ' ');
  const auto parts = split(text, ' ', /*keep_empty=*/false);
  return {parts.begin(), parts.end()};
}

bool contains(const std::vector<std::string>& words, std::string_view word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

// Mountinfo writes a space as "\040"; also tab, newline, \ and #.
std::string unescaped(std::string_view field) {
  const auto octal = [](char digit, char highest) { return digit >= '0' && digit <= highest; };
  std::string text;
  for (size_t at = 0; at < field.size(); ++at) {
    if (field[at] == '\\' && at + 3 < field.size() && octal(field[at + 1], '3') &&
        octal(field[at + 2], '7') && octal(field[at + 3], '7')) {
      text += static_cast<char>((field[at + 1] - '0') * 64 + (field[at + 2] - '0') * 8 +
                                (field[at + 3] - '0'));
      at += 3;
    } else {
      text += field[at];
    }
  }
  return text;
}

std::string joined(const std::string& folder, std::string_view name) {
  while (name.starts_with('/')) name.remove_prefix(1);
  if (name.empty()) return folder;
  return (folder.ends_with('/') ? folder : folder + "/") + std::string(name);
}

std::string parent_of(const std::string& directory) {
  const size_t slash = directory.rfind('/');
  return slash == 0 || slash == std::string::npos ? "/" : directory.substr(0, slash);
}

bool is_directory(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_directory(path, ignored);
}

bool exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

// A place where it may be: `missing` counts the components of the path that could not be resolved.
struct Candidate {
  std::string directory;
  std::string mount_point;
  size_t missing = 0;
};

// The group `depth` unknown names under the mount that lists this process. Needed only where a cgroup
// namespace looks at a mount from outside: the mount root then is "/.." times `depth`, and the names
// on the way down are hidden by the namespace.
std::optional<std::string> search(const std::string& folder, size_t depth,
                                  const std::string& below) {
  if (depth == 0) {
    std::string directory = joined(folder, below);
    const bool found = contains(words_in(directory + "/cgroup.procs"), std::to_string(::getpid()));
    return found ? std::optional(std::move(directory)) : std::nullopt;
  }
  std::optional<std::string> found;
  os::visit_folder(folder, [&](const os::FolderEntry& entry) {
    if (entry.may_be_folder) found = search(joined(folder, entry.name), depth - 1, below);
    return !found;
  });
  return found;
}

std::optional<Candidate> place_of(const Mount& mount, const std::string& path,
                                  const std::string& root) {
  const std::string mount_point = joined(root, mount.point);
  if (!is_directory(mount_point)) return std::nullopt;
  auto above = split(mount.root, '/', /*keep_empty=*/false);
  auto below = split(path, '/', /*keep_empty=*/false);
  const auto [a, b] = std::mismatch(above.begin(), above.end(), below.begin(), below.end());
  above.erase(above.begin(), a);
  below.erase(below.begin(), b);
  std::string rest;
  for (const std::string_view name : below) rest += (rest.empty() ? "" : "/") + std::string(name);
  const auto is_up = [](std::string_view name) { return name == ".."; };
  if (!above.empty()) {
    // The mount does not begin at an ancestor of the group as far as the names tell.
    if (std::all_of(above.begin(), above.end(), is_up)) {
      if (auto found = search(mount_point, above.size(), rest)) {
        return Candidate{std::move(*found), mount_point, 0};
      }
    }
    return Candidate{mount_point, mount_point, below.size() + 1};
  }
  if (std::any_of(below.begin(), below.end(), is_up)) {
    return Candidate{mount_point, mount_point, below.size()};
  }
  Candidate place{joined(mount_point, rest), mount_point, 0};
  while (place.directory != mount_point && !is_directory(place.directory)) {
    place.directory = parent_of(place.directory);
    ++place.missing;
  }
  return place;
}

// The mount that shows most of the path; of equals the last, which hides the ones before.
std::optional<Candidate> best_place(const std::vector<Mount>& mounts, bool is_v1,
                                    const std::string& path, const std::string& root) {
  std::optional<Candidate> best;
  for (const Mount& mount : mounts) {
    if (mount.type != (is_v1 ? "cgroup" : "cgroup2")) continue;
    if (is_v1 && !contains(mount.options, "memory")) continue;
    auto place = place_of(mount, path, root);
    if (place && (!best || place->missing <= best->missing)) best = std::move(place);
  }
  return best;
}

// Those whose hierarchy may have the memory controller: v1's, which says so, before v2's.
std::vector<Membership> with_memory(std::string_view text) {
  std::vector<Membership> found = parse_memberships(text);
  std::erase_if(found, [](const Membership& each) {
    return !each.is_v2() && !contains(each.controllers, "memory");
  });
  std::stable_partition(found.begin(), found.end(),
                        [](const Membership& each) { return !each.is_v2(); });
  return found;
}

// The nearest v2 level with the memory controller. The root group has no limit files; its list of
// controllers says whether memory is v2.
std::optional<std::string> charged_v2_level(const Candidate& place) {
  std::string level = place.directory;
  while (!exists(level + "/memory.max")) {
    if (level == place.mount_point) {
      if (contains(words_in(level + "/cgroup.controllers"), "memory")) return level;
      return std::nullopt;
    }
    level = parent_of(level);
  }
  return level;
}

}  // namespace

std::vector<Mount> parse_mountinfo(std::string_view text) {
  std::vector<Mount> mounts;
  for (const std::string_view line : split(text, '\n', /*keep_empty=*/false)) {
    // id parent major:minor ROOT POINT options [optional fields...] - TYPE source OPTIONS
    const auto fields = split(line, ' ', /*keep_empty=*/true);
    size_t dash = 6;
    while (dash < fields.size() && fields[dash] != "-") ++dash;
    if (dash + 3 >= fields.size()) continue;
    Mount mount{unescaped(fields[3]), unescaped(fields[4]), unescaped(fields[dash + 1]), {}};
    for (const std::string_view option : split(fields[dash + 3], ',', /*keep_empty=*/false)) {
      mount.options.push_back(unescaped(option));
    }
    mounts.push_back(std::move(mount));
  }
  return mounts;
}

std::vector<Membership> parse_memberships(std::string_view text) {
  std::vector<Membership> memberships;
  for (const std::string_view line : split(text, '\n', /*keep_empty=*/false)) {
    // Only the first two colons separate: a path may contain more.
    const size_t first = line.find(':');
    const size_t second = first == std::string_view::npos ? first : line.find(':', first + 1);
    if (second == std::string_view::npos || first == 0) continue;
    const std::string_view id = line.substr(0, first);
    if (id.find_first_not_of("0123456789") != std::string_view::npos) continue;
    const auto controllers =
        split(line.substr(first + 1, second - first - 1), ',', /*keep_empty=*/false);
    memberships.push_back({std::string(id),
                           {controllers.begin(), controllers.end()},
                           std::string(line.substr(second + 1))});
  }
  return memberships;
}

std::string charged_path(std::string_view memberships) {
  const std::vector<Membership> found = with_memory(memberships);
  return found.empty() ? std::string() : found.front().path;
}

std::optional<MemoryGroup> find_memory_group(const ProcFiles& where, const std::string& process) {
  const auto mountinfo = whole_file(joined(where.proc, "self/mountinfo"));
  const auto cgroup = whole_file(joined(where.proc, process + "/cgroup"));
  if (!mountinfo || !cgroup) return std::nullopt;
  const std::vector<Mount> mounts = parse_mountinfo(*mountinfo);
  for (const Membership& membership : with_memory(*cgroup)) {
    const bool is_v1 = !membership.is_v2();
    auto place = best_place(mounts, is_v1, membership.path, where.root);
    if (!place) continue;
    auto charged = is_v1 ? std::optional(place->directory) : charged_v2_level(*place);
    if (!charged) continue;
    return MemoryGroup{is_v1, membership.path, std::move(*charged), place->mount_point,
                       place->missing == 0};
  }
  return std::nullopt;
}

std::vector<LevelFiles> charged_levels(const MemoryGroup& group) {
  const auto kind = group.is_v1 ? LevelFiles::Kind::kV1 : LevelFiles::Kind::kV2;
  const char* usage = group.is_v1 ? "/memory.usage_in_bytes" : "/memory.current";
  std::vector<LevelFiles> levels;
  for (std::string directory = group.directory;; directory = parent_of(directory)) {
    // v1 kernels before 5.11: such a parent is not charged for its children.
    if (!levels.empty() && number_in(directory + "/memory.use_hierarchy") == uint64_t{0}) break;
    // The root group of v2, and levels without the controller, have no such file.
    if (number_in(directory + usage)) levels.push_back({kind, directory, ""});
    if (directory == group.mount_point || directory == "/") break;
  }
  if (group.is_v1 && !levels.empty()) {
    levels.push_back({LevelFiles::Kind::kAboveV1, levels.back().path, group.directory});
  }
  return levels;
}

}  // namespace pgalloc
