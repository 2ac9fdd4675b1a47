#include "sharing/peer_file.h"

#include <errno.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "backing/backing_file.h"
#include "backing/prefault.h"
#include "base/reserve.h"
#include "guard/commit_gate.h"
#include "os/retry.h"
#include "os/syscalls.h"
#include "os/transfer.h"
#include "sharing/shared_discards.h"

namespace pgalloc {

using os::sys;

Result<std::shared_ptr<PeerFile>> PeerFile::create(int fd, const Identity& identity,
                                                   std::shared_ptr<OwnerLink> link) {
  if (identity.capacity == 0 || identity.capacity > kMaxOffset) {
    return Status::error(ErrorCode::kOption, "impossible capacity");
  }
  auto chunks = ChunkMap::reserve(identity.capacity, /*writable=*/!identity.readonly,
                                  /*advised=*/false);  // what is there is mapped as it is
  if (!chunks.ok()) return std::move(chunks).status();
  auto file = inherit(std::move(*chunks), fd, identity, std::move(link), {});
  // A lease on its pages may have arrived already. The owner of a connection that ended looks at what is
  // mapped here: if it ended after the file was mapped, it has seen that.
  if (file.ok() && (*file)->link_->is_cut_off()) {
    return Status::error(ErrorCode::kOwnerGone,
                         "the connection to the owner of these pages has ended");
  }
  return file;
}

Result<std::shared_ptr<PeerFile>> PeerFile::make(std::shared_ptr<ChunkMap> chunks, int fd,
                                                 const Identity& identity,
                                                 std::shared_ptr<OwnerLink> link) {
  const int copy = sys().duplicate(fd);
  if (copy < 0) return Status::system_error(errno, "fcntl");
  os::Descriptor own(copy);
  if (!own.open()) return Status::system_error(errno, "fstat");
  std::shared_ptr<PeerFile> file(
      new PeerFile(std::move(chunks), std::move(own), identity, std::move(link)));
  void* const sign = sys().mmap(nullptr, page_size(), PROT_NONE, MAP_SHARED, file->fd(), 0);
  if (sign == MAP_FAILED) return Status::system_error(errno, "mmap");
  file->sign_ = sign;
  return file;
}

Result<std::shared_ptr<PeerFile>> PeerFile::inherit(
    std::shared_ptr<ChunkMap> chunks, int fd, const Identity& identity,
    std::shared_ptr<OwnerLink> link, const std::vector<std::pair<FileRange, uint32_t>>& pages) {
  SharedDiscards::install();
  auto file = make(std::move(chunks), fd, identity, std::move(link));
  if (!file.ok()) return file;
  MutexLock lock((*file)->mu_);
  for (const auto& [range, handles] : pages) (*file)->handles_.record(range, handles);
  return file;
}

PeerFile::~PeerFile() {
  (void)close();
  if (sign_ != nullptr) sys().munmap(sign_, page_size());
  descriptor_.close();
  link_->end_file();
}

namespace {

Status not_the_protocol() {
  return Status::error(ErrorCode::kOwnerGone,
                       "the owner of these pages does not keep to the protocol");
}

}  // namespace

Status PeerFile::check_usable() const {
  if (closed()) return Status::error(ErrorCode::kClosed, "the shared file is closed");
  if (link_->broken()) {
    return Status::error(ErrorCode::kOwnerGone,
                         "the process that owns these pages has ended, or has dropped the "
                         "connection");
  }
  return {};
}

Status PeerFile::check_descriptor() const {
  return descriptor_.intact() ? Status() : lost_descriptor(fd());
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

// Also when the owner has ended since: what it has handed over stays.
Status PeerFile::adopt(FileRange range) {
  Status status = closed() ? check_usable() : check_range(range);
  std::vector<FileRange> twice;
  std::vector<FileRange> unpinned;
  if (status.ok()) {
    MutexLock lock(mu_);
    unpinned = unpinned_in(range);
  }
  // The new lease keeps what was unpinned from being discarded until it is pinned; packets arrive in
  // order, so that is before the second lease is given back.
  for (const FileRange& pages : unpinned) {
    link_->post(wire::Op::kPin, packed(pages), pinning(pages, nullptr));
  }
  if (status.ok()) {
    MutexLock lock(mu_);
    handles_.set().visit_range(range,
                               [&](FileRange part, const uint32_t&) { twice.push_back(part); });
    link_->make_room_to_give_back(twice.size());
    if (!handles_.add(range)) {
      status = Status::error(ErrorCode::kRefCount, "a page has 2^32-1 references here");
    }
  }
  if (!status.ok()) {
    link_->give_back(identity_.id, range);
    return status;
  }
  // One lease on a page is enough (invariant 1).
  for (const FileRange& part : twice) link_->give_back(identity_.id, part);
  return {};
}

Status PeerFile::inc_ref(FileRange range, uint32_t) {
  if (closed()) return check_usable();
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
    for (const FileRange& part : gone) forget_unpinned(part);
  }
  give_back(gone);
  return {};
}

Result<bool> PeerFile::has_unique_ref(FileRange range) const {
  if (closed()) return check_usable();
  PGALLOC_RETURN_IF_ERROR(check_range(range));
  MutexLock lock(mu_);
  if (!handles_.has(range)) return not_held(range);
  return handles_.is_unique(range);
}

// The handle of these pages has ended.
void PeerFile::forget_unpinned(FileRange range) {
  for (auto* const records : {&unpinned_, &lost_}) {
    auto entry = records->lower_bound(range.start);
    while (entry != records->end() && entry->first < range.end) entry = records->erase(entry);
  }
}

bool PeerFile::holds(FileRange range) const {
  if (range.empty()) return false;
  MutexLock lock(mu_);
  return handles_.has(range);
}

// The file only grows; its owner has grown it before a lease on its end could arrive.
Result<bool> PeerFile::reaches(uint64_t end) const {
  if (end <= size_.load(std::memory_order_acquire)) return true;
  PGALLOC_RETURN_IF_ERROR(check_descriptor());
  struct stat status{};
  if (os::retry_interrupted([&] { return sys().fstat(fd(), &status); }) != 0) {
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
  PGALLOC_RETURN_IF_ERROR(check_descriptor());
  PGALLOC_RETURN_IF_ERROR(chunks_->map(fd(), range));
  return chunks_->address(range.start);
}

Status PeerFile::write(uint64_t offset, const char* data, uint64_t size) {
  if (closed()) return check_usable();
  PGALLOC_RETURN_IF_ERROR(check_descriptor());
  if (size == 0 || !chunks_->allows_huge(offset)) return os::write_at(fd(), offset, data, size);
  const Result<char*> address = map({offset, offset + size});  // as MemoryFile::write()
  if (!address.ok()) return address.status().clone();
  std::memcpy(*address, data, size);
  return {};
}

// In this mapping: the owner advises its own. Only where the huge page is all of this process.
void PeerFile::allow_huge_pages(FileRange range) {
  const FileRange whole{align_up(range.start, huge_page_size()),
                        align_down(range.end, huge_page_size())};
  if (whole.start < whole.end) chunks_->advise(whole, /*huge=*/true);
}

void PeerFile::give_back(const std::vector<FileRange>& ranges) {
  for (const FileRange& range : ranges) {
    if (chunks_->ever_huge()) {
      chunks_->advise({align_down(range.start, huge_page_size()),
                       std::min(align_up(range.end, huge_page_size()), chunks_->capacity())},
                      /*huge=*/false);
    }
    link_->give_back(identity_.id, range);
  }
}

Status PeerFile::commit(FileRange range) {
  PGALLOC_RETURN_IF_ERROR(check_descriptor());
  if (chunks_->allows_huge(range.start)) {
    const Result<char*> address = map(range);
    if (!address.ok()) return address.status().clone();
    return commit_by_touch(*address, range.length());
  }
  const int result = os::retry_interrupted([&] {
    return sys().fallocate(fd(), 0, static_cast<off_t>(range.start),
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

// --- What the owner is asked for -----------------------------------------------------------------

std::string PeerFile::packed(FileRange range) const {
  std::string payload;
  wire::append(payload, wire::Pages{identity_.id, range});
  return payload;
}

// The pages of this file that an answer begins with; nothing if the owner does not keep to the protocol.
std::optional<FileRange> PeerFile::pages_in(std::string_view payload) const {
  wire::Pages pages;
  if (!wire::Reader(payload).read(pages) || pages.file != identity_.id ||
      pages.range.start >= pages.range.end || !check_range(pages.range).ok() ||
      pages.range.end > identity_.capacity) {
    return std::nullopt;
  }
  return pages.range;
}

Result<FileRange> PeerFile::allocate(const AllocateRequest& request, const Patience& patience) {
  PGALLOC_RETURN_IF_ERROR(check_usable());
  std::string payload;
  wire::append(payload, identity_.id, request.length, static_cast<uint8_t>(request.kind),
               static_cast<uint8_t>(request.direction), request.memcg_id,
               static_cast<uint8_t>(request.huge));
  const auto outcome = std::make_shared<Result<FileRange>>(not_the_protocol());
  const auto self = shared_from_this();
  const bool wishes = request.huge != HugeWish::kNone;
  OwnerLink::Exchange exchange{
      [self, outcome, wishes, length = request.length](OwnerLink::Reply& reply) {
        const auto range = self->pages_in(reply.payload);
        wire::Pages pages;
        uint8_t huge = 0;
        wire::Reader reader(reply.payload);
        if (!range || range->length() != length || !reader.read(pages) ||
            (wishes && !reader.read_all(huge))) {
          return;
        }
        Status status = self->adopt(*range);
        if (status.ok()) {
          if (huge != 0) self->allow_huge_pages(*range);
          *outcome = *range;
        } else {
          *outcome = std::move(status);
        }
      },
      [self, outcome] {
        if (outcome->ok()) (void)self->dec_ref(**outcome);
      }};
  PGALLOC_RETURN_IF_ERROR(
      link_->request(wire::Op::kAllocate, payload, std::move(exchange), patience));
  return std::move(*outcome);
}

Status PeerFile::decommit(FileRange range, const Patience& patience) {
  PGALLOC_RETURN_IF_ERROR(check_usable());
  if (!holds(range)) return not_held(range);
  return link_->request(wire::Op::kDecommit, packed(range), {}, patience);
}

Result<bool> PeerFile::has_unique_ref(FileRange range, const Patience& patience) {
  PGALLOC_RETURN_IF_ERROR(check_usable());
  const Result<bool> here = has_unique_ref(range);
  if (!here.ok() || !*here) return here.ok() ? Result<bool>(false) : here.status().clone();
  return ask_yes_or_no(wire::Op::kUnique, range, patience);
}

// A question about pages whose answer is a byte.
Result<bool> PeerFile::ask_yes_or_no(wire::Op op, FileRange range, const Patience& patience) {
  const auto answer = std::make_shared<std::string>();
  PGALLOC_RETURN_IF_ERROR(link_->request(
      op, packed(range), {[answer](OwnerLink::Reply& reply) { *answer = reply.payload; }, {}},
      patience));
  if (answer->size() != 1) return not_the_protocol();
  return answer->front() == 1;
}

Result<KindBytes> PeerFile::usage(uint32_t memcg_id, const Patience& patience) const {
  PGALLOC_RETURN_IF_ERROR(check_usable());
  std::string payload;
  wire::append(payload, identity_.id, memcg_id);
  const auto answer = std::make_shared<std::string>();
  PGALLOC_RETURN_IF_ERROR(link_->request(
      wire::Op::kUsage, payload,
      {[answer](OwnerLink::Reply& reply) { *answer = reply.payload; }, {}}, patience));
  KindBytes bytes{};
  if (answer->size() != sizeof bytes) return not_the_protocol();
  std::memcpy(bytes.data(), answer->data(), sizeof bytes);
  return bytes;
}

// --- Discardable memory --------------------------------------------------------------------------

std::vector<FileRange> PeerFile::unpinned_in(FileRange range) const {
  std::vector<FileRange> found;
  auto entry = unpinned_.upper_bound(range.start);
  if (entry != unpinned_.begin() && std::prev(entry)->second.end > range.start) --entry;
  for (; entry != unpinned_.end() && entry->first < range.end; ++entry) {
    found.push_back(entry->second);
  }
  return found;
}

Result<bool> PeerFile::unpin(FileRange range, const Patience& patience) {
  PGALLOC_RETURN_IF_ERROR(check_usable());
  {
    MutexLock lock(mu_);
    if (!handles_.has(range)) return not_held(range);
    if (!handles_.is_unique(range)) return false;
    lost_.erase(range.start);
    unpinned_.insert_or_assign(range.start, range);
  }
  // Also when the answer comes after the caller has given up.
  OwnerLink::Exchange unpinning{[link = link_](OwnerLink::Reply&) {
                                  link->note_unpinned();
                                  commit_gate().note_unpinned();
                                },
                                {}};
  Status status = link_->request(wire::Op::kUnpin, packed(range), std::move(unpinning), patience);
  if (status.ok()) return true;
  if (generation_ != process_generation()) return status;  // the lock is the parent's
  if (status.code() != ErrorCode::kInterrupted && status.code() != ErrorCode::kTimedOut) {
    MutexLock lock(mu_);  // refused: nothing has changed there
    unpinned_.erase(range.start);
  }
  return status;
}

// What an answer to Op::kPin says, for the caller that waits for it, or for the next pin().
OwnerLink::Exchange PeerFile::pinning(FileRange range,
                                      const std::shared_ptr<std::optional<bool>>& intact) {
  const auto self = shared_from_this();
  const auto lose = [self, range] {
    MutexLock lock(self->mu_);
    if (self->handles_.has(range)) self->lost_.insert_or_assign(range.start, range);
  };
  return {[self, range, intact, lose](OwnerLink::Reply& reply) {
            const bool kept = reply.payload == std::string(1, '\1');
            {
              MutexLock lock(self->mu_);
              if (const auto entry = self->unpinned_.find(range.start);
                  entry != self->unpinned_.end() && entry->second == range) {
                self->unpinned_.erase(entry);
              }
            }
            if (intact != nullptr) {
              *intact = kept;
            } else if (!kept) {
              lose();
            }
          },
          [intact, lose] {
            if (intact != nullptr && *intact && !**intact) lose();
          }};
}

Result<bool> PeerFile::pin(FileRange range, const Patience& patience) {
  PGALLOC_RETURN_IF_ERROR(check_usable());
  const auto intact = std::make_shared<std::optional<bool>>();
  PGALLOC_RETURN_IF_ERROR(
      link_->request(wire::Op::kPin, packed(range), pinning(range, intact), patience));
  MutexLock lock(mu_);
  // Pinned before, on behalf of another handle.
  const auto lost = lost_.find(range.start);
  const bool was_lost = lost != lost_.end() && lost->second == range;
  if (was_lost) lost_.erase(lost);
  return !was_lost && intact->value_or(false);
}

Status PeerFile::pin_others(FileRange range, const Patience& patience) {
  std::vector<FileRange> unpinned;
  {
    MutexLock lock(mu_);
    unpinned = unpinned_in(range);
  }
  for (const FileRange& pages : unpinned) {
    PGALLOC_RETURN_IF_ERROR(
        link_->request(wire::Op::kPin, packed(pages), pinning(pages, nullptr), patience));
  }
  return {};
}

// --- The end -------------------------------------------------------------------------------------

void PeerFile::begin_view(FileRange range) {
  if (generation_ != process_generation()) return;
  MutexLock lock(mu_);
  (void)viewed_.add(range);
}

void PeerFile::end_view(FileRange range) {
  if (generation_ != process_generation()) return;
  std::vector<FileRange> gone;
  std::vector<FileRange> given_back;
  {
    MutexLock lock(mu_);
    with_reserve([&]() NO_THREAD_SAFETY_ANALYSIS { (void)viewed_.remove(range, &gone); });
    if (kept_.empty()) return;
    with_reserve([&]() NO_THREAD_SAFETY_ANALYSIS {
      given_back.clear();
      for (const FileRange& part : gone) {
        kept_.set().visit_range(
            part, [&](FileRange kept, const uint32_t&) { given_back.push_back(kept); });
      }
    });
    for (const FileRange& part : given_back) {
      with_reserve([&]() NO_THREAD_SAFETY_ANALYSIS { (void)kept_.remove(part, nullptr); });
    }
  }
  give_back(given_back);
}

bool PeerFile::close() {
  if (generation_ != process_generation()) return false;
  std::vector<FileRange> given_back;
  MutexLock lock(mu_);
  if (!closed_.exchange(true)) {
    std::vector<FileRange> kept;
    for (auto part = handles_.set().first(); part.ok(); part = part.next()) {
      FileRange rest = part.range();
      viewed_.set().visit_range(part.range(), [&](FileRange viewed, const uint32_t&) {
        kept.push_back(viewed);
        if (rest.start < viewed.start) given_back.push_back({rest.start, viewed.start});
        rest.start = viewed.end;
      });
      if (!rest.empty()) given_back.push_back(rest);
    }
    for (const FileRange& viewed : kept) kept_.record(viewed, 1);
    handles_.clear();
    unpinned_.clear();
    lost_.clear();
  }
  const bool keeps = !kept_.empty() || values_ > 0;
  lock.unlock();
  give_back(given_back);
  return keeps;
}

Result<std::shared_ptr<PeerFile>> PeerFile::inherit(
    PeerFile& parents, std::shared_ptr<OwnerLink> link) NO_THREAD_SAFETY_ANALYSIS {
  parents.chunks_->reset_after_fork();
  auto made = make(parents.chunks_, parents.fd(), parents.identity_, std::move(link));
  if (!made.ok()) return made;
  const std::shared_ptr<PeerFile>& file = *made;
  MutexLock lock(file->mu_);
  for (const auto& [start, range] : parents.unpinned_) {
    (void)parents.handles_.remove(range, nullptr);
  }
  file->viewed_.swap(parents.viewed_);
  file->handles_.swap(parents.handles_);
  file->kept_.swap(parents.kept_);
  file->closed_ = parents.closed();
  return file;
}

void PeerFile::lock_for_fork() {
  if (std::exchange(locked_for_fork_, true)) return;
  mu_.lock_unranked();
}

void PeerFile::unlock_after_fork() {
  if (std::exchange(locked_for_fork_, false)) mu_.unlock_unranked();
}

uint64_t PeerFile::leased_bytes() const {
  MutexLock lock(mu_);
  return handles_.set().span();
}

}  // namespace pgalloc
