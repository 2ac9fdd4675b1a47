#include "sharing/peer_file.h"

#include <errno.h>

#include <new>

#include "backing/prefault.h"
#include "os/retry.h"
#include "os/syscalls.h"
#include "os/transfer.h"

namespace pgalloc {

using os::sys;

Result<std::shared_ptr<PeerFile>> PeerFile::create(int fd, const Identity& identity,
                                                   std::shared_ptr<OwnerLink> link) {
  if (identity.capacity == 0 || identity.capacity > kMaxOffset) {
    return Status::error(ErrorCode::kOption, "impossible capacity");
  }
  auto chunks = ChunkMap::reserve(identity.capacity, /*writable=*/!identity.readonly);
  if (!chunks.ok()) return std::move(chunks).status();
  return inherit(std::move(*chunks), fd, identity, std::move(link), {});
}

Result<std::shared_ptr<PeerFile>> PeerFile::inherit(
    std::shared_ptr<ChunkMap> chunks, int fd, const Identity& identity,
    std::shared_ptr<OwnerLink> link, const std::vector<std::pair<FileRange, uint32_t>>& pages) {
  const int own = sys().duplicate(fd);
  if (own < 0) return Status::system_error(errno, "fcntl");
  std::shared_ptr<PeerFile> file(new PeerFile(std::move(chunks), own, identity, std::move(link)));
  MutexLock lock(file->mu_);
  for (const auto& [range, handles] : pages) file->handles_.record(range, handles);
  return file;
}

PeerFile::~PeerFile() {
  close();
  sys().close(fd_);
}

Status PeerFile::check_usable() const {
  if (closed()) return Status::error(ErrorCode::kClosed, "the shared file is closed");
  if (link_->broken()) {
    return Status::error(ErrorCode::kOwnerGone,
                         "the process that owns these pages has ended, or has dropped the "
                         "connection");
  }
  return {};
}

Status PeerFile::check_range(FileRange range) const {
  if (!range.empty() && is_aligned(range.start, page_size()) &&
      is_aligned(range.end, page_size())) {
    return {};
  }
  return Status::error(ErrorCode::kRange, "the range is empty or not page-aligned");
}

Status PeerFile::not_held(FileRange) const {
  return Status::error(ErrorCode::kRange, "this process has no lease on all of these pages");
}

Status PeerFile::adopt(FileRange range) {
  PGALLOC_RETURN_IF_ERROR(check_usable());
  PGALLOC_RETURN_IF_ERROR(check_range(range));
  std::vector<FileRange> twice;
  {
    MutexLock lock(mu_);
    handles_.set().visit_range(range,
                               [&](FileRange part, const uint32_t&) { twice.push_back(part); });
    if (!handles_.add(range)) {
      return Status::error(ErrorCode::kRefCount, "a page has 2^32-1 references here");
    }
  }
  // One lease on a page is enough (invariant 1).
  for (const FileRange& part : twice) link_->give_back(identity_.id, part);
  return {};
}

Status PeerFile::inc_ref(FileRange range, uint32_t) {
  PGALLOC_RETURN_IF_ERROR(check_usable());
  PGALLOC_RETURN_IF_ERROR(check_range(range));
  MutexLock lock(mu_);
  if (!handles_.has(range)) return not_held(range);
  if (handles_.add(range)) return {};
  return Status::error(ErrorCode::kRefCount, "a page has 2^32-1 references here");
}

Status PeerFile::dec_ref(FileRange range) {
  if (closed()) return check_usable();
  PGALLOC_RETURN_IF_ERROR(check_range(range));
  std::vector<FileRange> gone;
  {
    MutexLock lock(mu_);
    if (!handles_.remove(range, &gone)) return not_held(range);
  }
  for (const FileRange& part : gone) link_->give_back(identity_.id, part);
  return {};
}

Result<bool> PeerFile::has_unique_ref(FileRange range) const {
  if (closed()) return check_usable();
  PGALLOC_RETURN_IF_ERROR(check_range(range));
  MutexLock lock(mu_);
  if (!handles_.has(range)) return not_held(range);
  return handles_.is_unique(range);
}

bool PeerFile::holds(FileRange range) const {
  if (range.empty()) return false;
  MutexLock lock(mu_);
  return handles_.has(range);
}

// The file only grows; its owner has grown it before a lease on its end could arrive.
Result<bool> PeerFile::reaches(uint64_t end) const {
  if (end <= size_.load(std::memory_order_acquire)) return true;
  struct stat status{};
  if (os::retry_interrupted([&] { return sys().fstat(fd_, &status); }) != 0) {
    return Status::system_error(errno, "fstat");
  }
  size_.store(static_cast<uint64_t>(status.st_size), std::memory_order_release);
  return end <= static_cast<uint64_t>(status.st_size);
}

uint64_t PeerFile::size() const {
  (void)reaches(UINT64_MAX);
  return size_.load(std::memory_order_acquire);
}

// Also when the owner has gone: the pages are there as long as they are mapped (or can be).
Result<char*> PeerFile::find_mapped(FileRange range) const {
  if (closed()) return Status::error(ErrorCode::kClosed, "the shared file is closed");
  if (range.empty()) return Status::error(ErrorCode::kRange, "the range is empty");
  const Result<bool> inside = reaches(range.end);
  if (!inside.ok()) return inside.status().clone();
  if (range.end > identity_.capacity || !*inside) {
    return Status::error(ErrorCode::kRange, "the range reaches beyond the end of the file");
  }
  return chunks_->is_mapped(range) ? chunks_->address(range.start) : nullptr;
}

Result<char*> PeerFile::map(FileRange range) {
  Result<char*> address = find_mapped(range);
  if (!address.ok() || *address != nullptr) return address;
  PGALLOC_RETURN_IF_ERROR(chunks_->map(fd_, range));
  return chunks_->address(range.start);
}

Status PeerFile::write(uint64_t offset, const char* data, uint64_t size) {
  if (closed()) return check_usable();
  return os::write_at(fd_, offset, data, size);
}

Status PeerFile::commit(FileRange range) {
  const int result = os::retry_interrupted([&] {
    return sys().fallocate(fd_, 0, static_cast<off_t>(range.start),
                           static_cast<off_t>(range.length()));
  });
  return result == 0 ? Status() : Status::system_error(errno, "fallocate");
}

Status PeerFile::populate(FileRange range) {
  const Result<char*> address = map(range);
  if (!address.ok()) return address.status().clone();
  prefault(*address, range.length());
  return {};
}

void PeerFile::close() {
  if (closed_.exchange(true) || generation_ != process_generation()) return;
  CountedPages dropped;
  {
    MutexLock lock(mu_);
    dropped.swap(handles_);
  }
  for (auto part = dropped.set().first(); part.ok(); part = part.next()) {
    link_->give_back(identity_.id, part.range());
  }
}

Result<std::shared_ptr<PeerFile>> PeerFile::inherit(
    PeerFile& parents, std::shared_ptr<OwnerLink> link,
    const std::vector<FileRange>& unpinned) NO_THREAD_SAFETY_ANALYSIS {
  const int own = sys().duplicate(parents.fd_);
  if (own < 0) return Status::system_error(errno, "fcntl");
  parents.chunks_->reset_after_fork();
  std::shared_ptr<PeerFile> file(
      new PeerFile(parents.chunks_, own, parents.identity_, std::move(link)));
  MutexLock lock(file->mu_);
  file->handles_.swap(parents.handles_);  // not under its lock: a thread that is gone may have it
  for (const FileRange& range : unpinned) (void)file->handles_.remove(range, nullptr);
  return file;
}

uint64_t PeerFile::leased_bytes() const {
  MutexLock lock(mu_);
  return handles_.set().span();
}

}  // namespace pgalloc
