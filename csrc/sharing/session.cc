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
      offers_(offers),
      usage_(std::make_shared<PeerUsage>(its_id)) {
  ++usage_->connections;
}

Session::~Session() {
  try {
    end_some(SIZE_MAX);
  } catch (const std::bad_alloc&) {  // NOLINT: what there is no memory to give back stays in use
  }
  --usage_->connections;
}

size_t Session::adopt(const std::shared_ptr<MemoryFile>& file, const References::Counts& pages) {
  size_t adopted = 0;
  if (pages.empty()) return adopted;
  try {
    const InUse held = hold(file);
    LeaseTable& table = held->share.table();
    while (adopted < pages.size() && table.add_lease(pages[adopted].first).ok()) ++adopted;
  } catch (const std::bad_alloc&) {  // NOLINT: see above
  }
  return adopted;
}

Session::Copying Session::begin_copy(Session& child) const {
  child.forked_ = true;
  child.knows_all_ = knows_all_;
  child.known_ = known_;
  Copying copying;
  copying.files.reserve(shares_.size());
  for (const auto& [file, held] : shares_) copying.files.push_back(file);
  child.attached_.reserve(attached_.size());
  for (const Attached& each : attached_) {
    if (each.reader == 0) continue;
    const Result<uint64_t> reader = each.cache->attach_copy_of(each.reader);
    if (!reader.ok()) throw std::bad_alloc();  // as where memory runs out: the child gets nothing
    // The child has its parent's mapping of its parent's file.
    child.attached_.push_back({each.cache, *reader, each.file});
  }
  return copying;
}

Result<bool> Session::copy_some(Session& child, Copying* copying, size_t segments_max) const {
  for (; !copying->files.empty(); copying->files.pop_back(), copying->from = 0) {
    const uint64_t file = copying->files.back();
    const auto held = shares_.find(file);
    if (held == shares_.end() || held->second->share.file()->closed()) continue;
    const InUse copy = child.hold(held->second->share.file());
    Result<bool> done =
        copy->share.table().copy_some(held->second->share.table(), &copying->from, &segments_max);
    if (!done.ok() || !*done) return done;
  }
  if (strikes(Plant::kFork)) child.end_some(SIZE_MAX);
  return true;
}

Session::InUse Session::hold(const std::shared_ptr<MemoryFile>& file) {
  known_.insert(file->id());
  if (const auto found = shares_.find(file->id()); found != shares_.end()) {
    return {*this, *found->second};
  }
  return {*this, *shares_.emplace(file->id(), std::make_unique<Held>(file, *usage_)).first->second};
}

void Session::end_use(Held& held) noexcept {
  held.counted.set(held.share.bytes(), held.share.unpinned_count());
  if (!held.share.empty()) return;
  forgotten_.splice(forgotten_.end(), held.when_forgotten);
  shares_.erase(held.share.file()->id());
}

std::vector<std::shared_ptr<MemoryFile>> Session::take_let_go() {
  let_go_.reserve(let_go_.size() + forgotten_.size());  // if that fails, they go next time
  for (std::shared_ptr<MemoryFile>& file : forgotten_) let_go_.push_back(std::move(file));
  forgotten_.clear();
  return std::exchange(let_go_, {});
}

uint64_t Session::bytes_max(const MemoryFile& file) const {
  if (scope.limits.bytes) return *scope.limits.bytes;
  return scope.file != nullptr ? file.allocatable_bytes() / 2 : UINT64_MAX;
}

void Session::count_with(const Session& other) noexcept {
  --usage_->connections;
  usage_ = other.usage_;
  ++usage_->connections;
}

Result<Session::InUse> Session::use(uint64_t file) {
  if (const auto held = shares_.find(file); held != shares_.end()) {
    if (held->second->share.file()->closed()) {
      return Status::error(ErrorCode::kClosed, "the owner has closed the MemoryFile");
    }
    return InUse(*this, *held->second);
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
  return hold(found);
}

Result<Session::InUse> Session::use_writable(uint64_t file) {
  if (scope.readonly) {
    return Status::error(ErrorCode::kPermission, "these pages are shared for reading only");
  }
  return use(file);
}

uint64_t Session::bytes_of(uint64_t file) const {
  const auto held = shares_.find(file);
  return held == shares_.end() ? 0 : held->second->share.bytes();
}

std::vector<FileIdentity> Session::files() const {
  std::vector<FileIdentity> files;
  for (const auto& [name, held] : shares_) {
    MemoryFile& file = *held->share.file();
    if (const auto use = FileInUse::begin(file)) files.push_back(FileIdentity::of(file.fd()));
  }
  for (const Attached& each : attached_) {
    if (each.reader != 0) files.push_back(each.file);
  }
  return files;
}

std::optional<std::string> Session::verify() const {
  for (const auto& [name, held] : shares_) {
    if (held->share.empty()) return "a file of which nothing is held stays";
    if (!held->counted.is(held->share.bytes(), held->share.unpinned_count())) {
      return "what a process holds is miscounted";
    }
    if (auto broken = held->share.verify()) return broken;
  }
  return std::nullopt;
}

bool Session::end_some(size_t segments_max) {
  while (!shares_.empty()) {
    const InUse held(*this, *shares_.begin()->second);
    if (!held->share.end_some(segments_max)) return false;
  }
  end_attachments();
  return true;
}

void Session::end_attachments() noexcept {
  for (Attached& each : attached_) {
    if (each.reader != 0) each.cache->detach(std::exchange(each.reader, 0));
  }
}

}  // namespace pgalloc
