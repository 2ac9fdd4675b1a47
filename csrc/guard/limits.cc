#include "guard/limits.h"

#include <algorithm>
#include <utility>

#include "guard/kernel_file.h"

namespace pgalloc {

namespace {

constexpr auto kAbove = LevelFiles::Kind::kAboveV1;
// A limit above the mount point costs as much as all the rest, and hardly ever changes.
constexpr unsigned kRefreshesOfAbove = 8;
// The kernel's word of a vain reclaim comes so much later than the charge at most.
constexpr std::chrono::milliseconds kHitsAge{40};

}  // namespace

std::vector<std::pair<LevelFiles, MemoryLevel::Reading>> Limits::look_around(
    const ProcFiles& where) {
  Limits limits;
  limits.listens_ = false;
  limits.follow(where);
  limits.read([](const Watched&) { return uint64_t{0}; });
  std::vector<std::pair<LevelFiles, MemoryLevel::Reading>> found;
  for (const Watched& watched : limits.levels_) {
    const auto reading = limits.look_at(watched);
    const bool above = watched.level.files().kind == kAbove;
    if (reading && (!above || reading->limited()))
      found.emplace_back(watched.level.files(), *reading);
  }
  return found;
}

void Limits::watch(const std::vector<LevelFiles>& files) {
  open_levels(files);
  follows_.reset();
  membership_ = {};
  incomplete_ = false;
  listen(std::nullopt);
}

void Limits::open_levels(const std::vector<LevelFiles>& files) {
  std::vector<Watched> opened;
  for (const LevelFiles& level_files : files) {
    auto level = MemoryLevel::open(level_files);
    if (!level) continue;
    const uint64_t limit = level->limit();
    opened.push_back({.level = std::move(*level), .reading = {}, .limit = limit});
  }
  levels_ = std::move(opened);
  ++generation_;
}

// The kernel tells of what is written to a cgroup's file like of any other.
void Limits::listen(const std::optional<MemoryGroup>& group) {
  writes_ = {};
  if (levels_.empty() || !listens_) return;
  writes_ = WriteWatch::open();
  for (const Watched& watched : levels_) {
    for (const std::string& path : watched.level.limit_files()) writes_.add_file(path);
  }
  if (group) writes_.add_groups(group->mount_point);
}

bool Limits::follow(const ProcFiles& where) {
  follows_ = where;
  membership_ = {};
  find();
  return !empty();
}

void Limits::find() {
  const ProcFiles where = *follows_;
  const uint64_t before = opens_without_descriptors();
  if (!membership_.intact()) membership_ = open_kernel_file(where.proc + "/self/cgroup");
  std::string seen(KernelText(membership_).text());  // before it looks: a move meanwhile is another
  const auto group = find_memory_group(where);
  auto files = group ? charged_levels(*group) : std::vector<LevelFiles>{};
  files.push_back({LevelFiles::Kind::kMachine, where.proc + "/meminfo"});
  open_levels(files);
  memberships_ = std::move(seen);
  incomplete_ = opens_without_descriptors() != before;
  listen(group);
}

// What cannot be read says nothing of a move.
bool Limits::moved() const {
  if (!follows_ || !membership_.intact()) return false;
  const KernelText text(membership_);
  return !text.text().empty() && text.text() != memberships_;
}

bool Limits::intact() const {
  return (!writes().open() || writes().intact()) && (!membership_.open() || membership_.intact()) &&
         std::all_of(levels_.begin(), levels_.end(),
                     [](const Watched& watched) { return watched.level.intact(); });
}

void Limits::reopen() {
  if (follows_) {
    follow(ProcFiles(*follows_));
    return;
  }
  std::vector<LevelFiles> files;
  files.reserve(levels_.size());
  for (const Watched& watched : levels_) files.push_back(watched.level.files());
  watch(files);
}

bool Limits::refresh(Time now) {
  if (!intact()) {
    reopen();
    return true;
  }
  if (moved() || (incomplete_ && follows_)) {
    find();
    return true;
  }
  const bool above_too = ++refreshes_ % kRefreshesOfAbove == 0;
  bool changed = false;
  for (Watched& watched : levels_) {
    if (watched.is_machine()) continue;
    if (watched.level.files().kind == kAbove && !above_too) continue;
    const uint64_t before = std::exchange(watched.limit, watched.level.limit());
    changed = changed || watched.limit != before;
  }
  if (now - hits_taken_ >= kHitsAge) take_hits(now);
  return changed;
}

void Limits::take_hits(Time now) {
  for (Watched& watched : levels_) {
    if (!watched.vain_reclaim.open()) continue;
    watched.hits_before = std::exchange(watched.hits, watched.level.hits().value_or(0));
  }
  hits_taken_ = now;
}

bool Limits::is_idle_above(const Watched& watched) const {
  return watched.level.files().kind == kAbove && watched.limit >= smallest_of_groups();
}

void Limits::drop_what_is_explained() {
  const uint64_t smallest = smallest_of_groups();
  for (Watched& watched : levels_) {
    MemoryLevel::Reading& reading = watched.reading;
    if (watched.level.files().kind == kAbove && reading.limit >= smallest) reading = {};
  }
}

std::optional<MemoryLevel::Reading> Limits::look_at(const Watched& watched) const {
  auto reading = watched.level.read(Depth::kEverything);
  if (reading && watched.level.files().kind == kAbove && reading->limit >= smallest_of_groups()) {
    reading->limit = UINT64_MAX;
  }
  return reading;
}

uint64_t Limits::smallest_of_groups() const {
  uint64_t smallest = UINT64_MAX;
  for (const Watched& watched : levels_) {
    const auto kind = watched.level.files().kind;
    if (kind == LevelFiles::Kind::kMachine || kind == kAbove) continue;
    smallest = std::min(smallest, watched.reading.limit);
  }
  return smallest;
}

// Without meminfo there is none, as far as is known.
uint64_t Limits::swap_room() const {
  uint64_t of_machine = 0;
  uint64_t of_groups = UINT64_MAX;
  for (const Watched& watched : levels_) {
    const auto reading = watched.level.read(Depth::kEverything);
    if (!reading) continue;
    uint64_t& room = watched.is_machine() ? of_machine : of_groups;
    room = watched.is_machine() ? reading->swap_room : std::min(room, reading->swap_room);
  }
  return std::min(of_machine, of_groups);
}

}  // namespace pgalloc
