#include "sharing/session.h"

#include <algorithm>
#include <new>

#include "file/file_registry.h"
#include "sharing/plant.h"

namespace pgalloc {

Session::Session(uint64_t its_id, Offers& offers, Scope its_scope, pid_t its_pid, uid_t its_uid)
    : id(its_id),
      scope(std::move(its_scope)),
      pid(its_pid),
      shown_pid(std::max(its_pid, 0)),
      uid(its_uid),
      since_epoch(seconds_since_epoch()),
      offers_(offers) {}

Session::~Session() {
  if (sharers_ != nullptr) std::erase(*sharers_, this);
  try {
    end_some(SIZE_MAX);
  } catch (const std::bad_alloc&) {  // NOLINT: what there is no memory to give back stays in use
  }
}

size_t Session::adopt(const std::shared_ptr<MemoryFile>& file, const References::Counts& pages) {
  size_t adopted = 0;
  if (pages.empty()) return adopted;
  try {
    let_go_.reserve(let_go_.size() + 1);
    LeaseTable& table = hold(file).share.table();
    while (adopted < pages.size() && table.add_lease(pages[adopted].first).ok()) ++adopted;
  } catch (const std::bad_alloc&) {  // NOLINT: see above
  }
  tidy(file->id());
  return adopted;
}

Session::Copying Session::begin_copy(Session& child) const {
  child.forked_ = true;
  child.knows_all_ = knows_all_;
  child.known_ = known_;
  Copying copying;
  copying.files.reserve(shares_.size());
  for (const auto& [file, held] : shares_) copying.files.push_back(file);
  return copying;
}

Result<bool> Session::copy_some(Session& child, Copying* copying, size_t ranges_max) const {
  for (; !copying->files.empty(); copying->files.pop_back(), copying->from = 0) {
    const uint64_t file = copying->files.back();
    const auto held = shares_.find(file);
    if (held == shares_.end() || held->second->share.file()->closed()) {
      child.tidy(file);
      continue;
    }
    LeaseTable& copy = child.hold(held->second->share.file()).share.table();
    Result<bool> done = copy.copy_some(held->second->share.table(), &copying->from, &ranges_max);
    if (done.ok() && !*done) return false;
    child.tidy(file);
    if (!done.ok()) return done;
  }
  if (strikes(Plant::kFork)) child.end_some(SIZE_MAX);
  return true;
}

Session::Held& Session::hold(std::shared_ptr<MemoryFile> file) {
  const uint64_t name = file->id();
  known_.insert(name);
  if (const auto found = shares_.find(name); found != shares_.end()) return *found->second;
  return *shares_.emplace(name, std::make_unique<Held>(std::move(file))).first->second;
}

// Forgets a file of which nothing is held: it may go.
void Session::tidy(uint64_t file) {
  const auto held = shares_.find(file);
  if (held == shares_.end() || !held->second->share.empty() || !held->second->views.empty()) return;
  let_go_.push_back(held->second->share.file());
  shares_.erase(held);
}

uint64_t Session::unpinned_count() const {
  uint64_t count = 0;
  for (const auto& [file, held] : shares_) count += held->share.unpinned_count();
  return count;
}

uint64_t Session::bytes_max(const MemoryFile& file) const {
  if (scope.limits.bytes) return *scope.limits.bytes;
  return scope.file != nullptr ? file.allocatable_bytes() / 2 : UINT64_MAX;
}

void Session::share_limits_with(Session& other) {
  if (other.sharers_ == nullptr) {
    other.sharers_ = std::make_shared<std::vector<const Session*>>(1, &other);
  }
  other.sharers_->push_back(this);
  sharers_ = other.sharers_;
}

// A file the peer was let into.
Result<Session::Held*> Session::find(uint64_t file) {
  if (const auto held = shares_.find(file); held != shares_.end()) {
    if (held->second->share.file()->closed()) {
      return Status::error(ErrorCode::kClosed, "the owner has closed the MemoryFile");
    }
    return held->second.get();
  }
  const bool served = scope.file != nullptr && scope.file->id() == file;
  if (!served && !knows_all_ && !known_.contains(file)) {
    return Status::error(ErrorCode::kSharing, "the peer has nothing of this file");
  }
  auto found = served ? scope.file : std::static_pointer_cast<MemoryFile>(FileRegistry::find(file));
  if (found == nullptr || found->closed()) {
    if (found != nullptr) let_go_.push_back(std::move(found));  // this may be its last owner
    return Status::error(ErrorCode::kClosed, "the owner has closed the MemoryFile");
  }
  return &hold(std::move(found));
}

Result<Session::Held*> Session::find_writable(uint64_t file) {
  if (scope.readonly) {
    return Status::error(ErrorCode::kPermission, "these pages are shared for reading only");
  }
  return find(file);
}

uint64_t Session::bytes_of(uint64_t file) const {
  const auto held = shares_.find(file);
  return held == shares_.end() ? 0 : held->second->share.bytes();
}

std::vector<FileIdentity> Session::files() const {
  std::vector<FileIdentity> files;
  for (const auto& [name, held] : shares_) {
    const MemoryFile& file = *held->share.file();
    if (!file.closed()) files.push_back(FileIdentity::of(file.fd()));
  }
  return files;
}

std::optional<std::string> Session::verify() const {
  for (const auto& [name, held] : shares_) {
    if (held->share.empty() && held->views.empty()) return "a file of which nothing is held stays";
    if (auto broken = held->share.verify()) return broken;
  }
  return std::nullopt;
}

bool Session::end_some(size_t ranges_max) {
  while (!shares_.empty()) {
    const auto held = shares_.begin();
    if (!held->second->share.end_some(ranges_max)) return false;
    if (!drop_views(*held->second, {0, kMaxOffset}, ranges_max)) return false;
    let_go_.push_back(held->second->share.file());
    shares_.erase(held);
  }
  return true;
}

// What Python keeps for pages of which the peer holds nothing any more: so many. True if that is all.
bool Session::drop_views(Held& held, FileRange range, size_t count_max) {
  auto view = held.views.upper_bound(range.start);
  if (view != held.views.begin()) --view;
  while (view != held.views.end() && view->first < range.end) {
    const FileRange pages{view->first, view->second.end};
    const bool holds_some = !held.share.table().held().set().is_empty_range(pages);
    if (pages.end <= range.start || holds_some) {
      ++view;
      continue;
    }
    if (count_max-- == 0) return false;
    if (scope.lookups != nullptr) scope.lookups->drop(view->second.number, &let_go_);
    view = held.views.erase(view);
  }
  return true;
}

}  // namespace pgalloc
