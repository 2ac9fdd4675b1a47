// Purpose: finds the memory cgroup that this process is charged to, and the levels above it whose
// limits hold for it too, from /proc/self/mountinfo and /proc/self/cgroup.
//
// Three layouts exist: v1 (one hierarchy per controller), v2 (one for all) and hybrid (v1 controllers
// beside an empty v2 hierarchy). The one that has the memory controller is meant; a hybrid system
// therefore counts as v1. The path in /proc/self/cgroup is relative to the root of the reader's cgroup
// namespace; a mount shows a subtree that begins at its root field, relative to the same. So the
// directory is
//
//     mount point / (cgroup path minus mount root)
//
// and containers break every part of that: no cgroup namespace (both sides are long host paths), a
// namespace without a fresh mount (the mount root is "/../.."), a process moved out of its namespace
// (the path begins with "/.."), a bind mount of another group. What cannot be resolved exactly falls
// back to the nearest ancestor that is visible, whose limit holds for the process too.
//
// Thread safety: values only.
//
// Sources: cgroups(7), cgroup_namespaces(7), proc_pid_mountinfo(5),
// Documentation/admin-guide/cgroup-v2.rst.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "guard/memory_level.h"

namespace pgalloc {

// Where to look; a test gives folders that only look like these.
struct ProcFiles {
  std::string proc = "/proc";
  std::string root = "/";  // put before every mount point
};

struct MemoryGroup {
  bool is_v1 = false;
  std::string path;  // as /proc/self/cgroup names it
  // v2: the nearest level with the memory controller, which is the one that is charged.
  std::string directory;
  std::string mount_point;  // the top of what is visible
  bool exact = true;        // false: the group itself is not visible, `directory` is an ancestor
};

// One mount. `root` is the directory inside the file system that is visible at `point`.
struct Mount {
  std::string root;
  std::string point;
  std::string type;
  std::vector<std::string> options;
};

// The group of this process in one hierarchy; v2 is hierarchy 0, and names no controllers.
struct Membership {
  std::string hierarchy;
  std::vector<std::string> controllers;
  std::string path;

  bool is_v2() const { return hierarchy == "0" && controllers.empty(); }
};

// In the order of the file: a later mount hides an earlier one at the same point. Lines that do not
// have the documented shape are left out.
std::vector<Mount> parse_mountinfo(std::string_view text);
std::vector<Membership> parse_memberships(std::string_view text);

// The path of the memory cgroup in the text of /proc/PID/cgroup, as its reader sees it; empty if there is no
// memory controller. (v2: of the process's own group, which may be charged by way of one above.)
std::string charged_path(std::string_view memberships);

// Nothing if there is no memory controller to be seen.
// `process` is its number, or "self".
std::optional<MemoryGroup> find_memory_group(const ProcFiles& where,
                                             const std::string& process = "self");

// The levels whose usage counts what this process commits, its own first. Where v1 betrays a limit
// above the mount point, that is the last.
std::vector<LevelFiles> charged_levels(const MemoryGroup& group);

}  // namespace pgalloc
