// Section J, restoring: the pages of an image come back, at once or when they are needed.
//
// An extent is loaded as a whole, by whoever comes first: a thread that needs one of its pages, or a
// loader, which takes them in order. The thread reads and checks it without the lock; meanwhile
// the pages are arriving, and neither the reclaimer nor another thread touches them.
#include <algorithm>
#include <new>

#include "core/arriving_extent.h"
#include "core/memory_file.h"
#include "core/operation.h"

namespace pgalloc {
namespace {

constexpr FileRange kEverything{0, kMaxOffset};

// Calls visit(range of the file, bytes before it among the stored pages) for every stretch of stored
// pages within `parts`, which are ascending. Visit returns whether to go on.
template <class Visit>
bool visit_stored(const image::ExtentHead& head, std::span<const FileRange> parts, Visit visit) {
  uint64_t stored_before = 0;
  bool go_on = true;
  head.map.visit_runs([&](size_t first, size_t pages) {
    const uint64_t start = head.range.start + first * page_size();
    const FileRange run{start, start + pages * page_size()};
    for (const FileRange& part : parts) {
      const FileRange common = run.intersect(part);
      if (go_on && !common.empty()) go_on = visit(common, stored_before + common.start - run.start);
    }
    stored_before += run.length();
  });
  return go_on;
}

std::vector<FileRange> stored_ranges(const image::ExtentHead& head,
                                     std::span<const FileRange> parts) {
  std::vector<FileRange> ranges;
  visit_stored(head, parts, [&](FileRange range, uint64_t) {
    ranges.push_back(range);
    return true;
  });
  return ranges;
}

}  // namespace

Status MemoryFile::restore(uint64_t file_size, const std::vector<image::Usage>& usage) {
  PGALLOC_RETURN_IF_ERROR(check_open());
  std::vector<PageSegment> segments;
  segments.reserve(usage.size());
  uint64_t bytes = 0;
  for (const image::Usage& entry : usage) {
    segments.push_back({entry.range, {entry.refs, entry.memcg_id, entry.kind, false}});
    bytes += entry.range.length();
  }
  if (file_size > capacity()) {
    return Status::error(ErrorCode::kOutOfMemory,
                         "the saved file is larger than the capacity of this one");
  }
  if (bytes > options_.max_allocatable_bytes.value_or(UINT64_MAX)) {
    return Status::error(ErrorCode::kOutOfMemory,
                         "the image holds more than max_allocatable_bytes");
  }
  MutexLock lock(mu_);
  PGALLOC_RETURN_IF_ERROR(check_open());
  if (pages_.allocated_bytes() > 0 || image_ != nullptr) {
    return Status::error(ErrorCode::kSnapshot, "only a fresh MemoryFile can be restored into");
  }
  if (file_size > file_->size()) PGALLOC_RETURN_IF_ERROR(file_->grow(file_size));
  pages_.restore(segments);
  ++changes_;
  return {};
}

Status MemoryFile::write_restored(const image::ExtentHead& head, const char* raw) {
  std::optional<Operation> operation;
  PGALLOC_RETURN_IF_ERROR(begin_operation(operation));
  Status status;
  const FileRange whole[] = {head.range};
  visit_stored(head, whole, [&](FileRange range, uint64_t at) {
    status = file_->write(range, raw + at);
    return status.ok();
  });
  if (!status.ok()) return status;
  const std::vector<FileRange> stored = stored_ranges(head, whole);
  MutexLock lock(mu_);
  for (const FileRange& range : stored) pages_.mark_committed(range, nullptr);
  return {};
}

Status MemoryFile::start_loading(std::shared_ptr<const ImageFile> image, unsigned threads) {
  {
    MutexLock lock(mu_);
    PGALLOC_RETURN_IF_ERROR(check_open());
    for (const image::IndexEntry& entry : image->index()) {
      std::vector<FileRange> used;
      pages_.usage().visit_range(entry.range,
                                 [&](FileRange part, const PageUse&) { used.push_back(part); });
      if (used.empty()) {
        return Status::error(ErrorCode::kSnapshotCorrupt,
                             "an extent of the image stands for pages that nobody uses");
      }
      for (const FileRange& part : used) pages_.pending().expect(part);
    }
    if (pages_.pending().empty()) return {};
    image_ = std::move(image);
    load_cursor_ = 0;
    gate_.fetch_or(kIncomplete);
  }
  return LiveFiles::start_loaders(this, threads);
}

// --- Bringing an extent in -----------------------------------------------------------------------

std::unique_ptr<MemoryFile::ArrivingExtent> MemoryFile::take_extent(uint64_t waiting) {
  const size_t index = image_->first_extent_after(waiting);
  std::vector<FileRange> parts = pages_.pending().start(image_->index()[index].range);
  return std::unique_ptr<ArrivingExtent>(
      new ArrivingExtent(*this, image_, index, std::move(parts)));
}

std::unique_ptr<MemoryFile::ArrivingExtent> MemoryFile::fetch(
    std::unique_ptr<ArrivingExtent> extent) {
  Result<image::ExtentHead> head = extent->image_->read_extent(extent->index_, extent->buffer_);
  if (!head.ok()) {
    extent->fail(std::move(head).status());
    return nullptr;
  }
  extent->head_ = *head;
  if (extent->head_.encoding != image::Encoding::kRaw) return extent;
  extent->deliver(extent->encoded());
  return nullptr;
}

void MemoryFile::ArrivingExtent::deliver(std::span<const char> raw) {
  PGALLOC_CHECK_OP(raw.size(), ==, raw_length());
  file_.deliver(*this, raw.data());
}

void MemoryFile::ArrivingExtent::fail(Status status) {
  file_.fail_arrival(*this, std::move(status));
}

MemoryFile::ArrivingExtent::~ArrivingExtent() {
  if (settled_ || file_.forked()) return;
  MutexLock lock(file_.mu_);
  if (file_.closed()) return;
  for (const FileRange& part : parts_) file_.pages_.pending().put_back(part);
  file_.pending_changed();
}

void MemoryFile::deliver(ArrivingExtent& extent, const char* raw) {
  extent.settled_ = true;
  std::optional<Operation> operation;
  if (!begin_operation(operation).ok()) return;  // closed: nobody waits any more
  Status status;
  visit_stored(extent.head_, extent.parts_, [&](FileRange range, uint64_t at) {
    status = file_->write(range, raw + at);
    return status.ok();
  });
  if (!status.ok()) {
    for (const FileRange& part : extent.parts_) {
      // What was written of them must not stay as if it were theirs.
      if (!file_->punch(part).ok()) (void)file_->write_zeros(part);
    }
    fail_arrival(extent, std::move(status));
    return;
  }
  const std::vector<FileRange> stored = stored_ranges(extent.head_, extent.parts_);
  MutexLock lock(mu_);
  for (const FileRange& range : stored) pages_.mark_committed(range, nullptr);
  for (const FileRange& part : extent.parts_) pages_.pending().arrived(part);
  pending_changed();
}

void MemoryFile::fail_arrival(ArrivingExtent& extent, Status status) {
  extent.settled_ = true;
  if (forked()) return;
  MutexLock lock(mu_);
  // close() waits for a deliver() that fails; whoever fails to decode finds all forgotten.
  if (closed() && pages_.pending().empty()) return;
  const auto error = static_cast<uint32_t>(load_errors_.size());
  warn("pages of the image could not be loaded: " + status.describe());
  load_errors_.push_back(std::move(status));
  std::vector<FileRange> owned;
  std::vector<FileRange> let_go;  // whoever let go of the pages meanwhile does not care
  for (const FileRange& part : extent.parts_) {
    pages_.usage().visit_range(part, [&](FileRange range, const PageUse& use) {
      (use.refs > 0 ? owned : let_go).push_back(range);
    });
    pages_.mark_decommitted(part);
    disturb(part);
  }
  ++changes_;
  for (const FileRange& range : owned) pages_.pending().broke(range, error);
  for (const FileRange& range : let_go) pages_.pending().arrived(range);
  pending_changed();
}

// Somebody may be waiting for these pages, or for all of them, or for waste that was arriving.
void MemoryFile::pending_changed() {
  PendingPages& pending = pages_.pending();
  if (pending.outstanding_bytes() == 0) image_.reset();
  if (pending.empty()) gate_.fetch_and(static_cast<uint8_t>(~kIncomplete));
  pending_changed_.notify_all();
  if (pages_.waste_bytes() > 0) wake_reclaimer();
}

// Counts a thread that needs pages; memory may run out under it.
class MemoryFile::LoadWaiter {
 public:
  explicit LoadWaiter(MemoryFile& file) : file_(file) { ++file_.load_waiters_; }
  ~LoadWaiter() {
    if (--file_.load_waiters_ == 0) file_.pending_changed_.notify_all();
  }
  LoadWaiter(const LoadWaiter&) = delete;
  LoadWaiter& operator=(const LoadWaiter&) = delete;

 private:
  MemoryFile& file_;
};

// --- Who brings them in --------------------------------------------------------------------------

Result<bool> MemoryFile::load(FileRange range, std::chrono::steady_clock::time_point deadline,
                              std::unique_ptr<ArrivingExtent>* encoded, bool ignore_broken) {
  if (!incomplete()) return true;
  PGALLOC_RETURN_IF_ERROR(check_open());
  const LoadWaiter waiter(*this);
  MutexLock lock(mu_);
  while (true) {
    PGALLOC_RETURN_IF_ERROR(check_open());
    const PendingPages& pending = pages_.pending();
    if (const auto error = pending.find_error(range); error && !ignore_broken) {
      return load_errors_[*error].clone();
    }
    const bool late = std::chrono::steady_clock::now() >= deadline;
    // Without a decoder, encoded extents are waited for.
    const bool can_take =
        !late && (encoded != nullptr || (image_ && !image_->has_encoded_extents()));
    if (const auto waiting = pending.find(range, Arrival::kWaiting); waiting && can_take) {
      std::unique_ptr<ArrivingExtent> extent = take_extent(waiting->start);
      lock.unlock();
      extent = fetch(std::move(extent));
      lock.lock();
      if (extent == nullptr) continue;
      *encoded = std::move(extent);
      return false;
    }
    if (!pending.find(range, Arrival::kWaiting) && !pending.find(range, Arrival::kArriving) &&
        !pending.find(range, Arrival::kLeaving)) {
      return true;
    }
    if (!pending_changed_.wait_until(mu_, deadline)) return false;
  }
}

bool MemoryFile::load_next(std::unique_ptr<ArrivingExtent>* encoded) {
  if (!incomplete() || forked()) return false;
  std::unique_ptr<ArrivingExtent> extent;
  {
    MutexLock lock(mu_);
    stand_back();
    if (closed() || loaders_stop_) return false;
    auto waiting = pages_.pending().find({load_cursor_, kMaxOffset}, Arrival::kWaiting);
    if (!waiting) waiting = pages_.pending().find(kEverything, Arrival::kWaiting);
    if (!waiting) return false;
    load_cursor_ = waiting->start;
    extent = take_extent(waiting->start);
  }
  extent = fetch(std::move(extent));
  if (extent != nullptr) *encoded = std::move(extent);
  return true;
}

// Awaited pages go first: for a moment, whoever needs some has the machine for himself.
void MemoryFile::stand_back() {
  constexpr auto kMoment = std::chrono::milliseconds(2);
  const auto until = std::chrono::steady_clock::now() + kMoment;
  while (load_waiters_ > 0 && !closed() && !loaders_stop_) {
    if (!pending_changed_.wait_until(mu_, until)) return;
  }
}

void MemoryFile::load_loop() try {
  std::unique_ptr<ArrivingExtent> encoded;
  while (load_next(&encoded)) PGALLOC_CHECK(encoded == nullptr);
} catch (const std::bad_alloc&) {
  MutexLock lock(mu_);
  warn("out of memory: pages of the image are loaded when somebody needs them");
}

bool MemoryFile::loading() const {
  if (!incomplete() || forked()) return false;
  MutexLock lock(mu_);
  return image_ != nullptr;
}

MemoryFile::LoadProgress MemoryFile::load_progress() const {
  if (forked()) return {};
  MutexLock lock(mu_);
  const PendingPages& pending = pages_.pending();
  return {.total_bytes = pending.expected_bytes(),
          .pending_bytes = pending.outstanding_bytes(),
          .dropped_bytes = pending.forgotten_bytes(),
          .failed_bytes = pending.bytes(Arrival::kBroken)};
}

// --- Owners --------------------------------------------------------------------------------------

Status MemoryFile::adopt(FileRange range) {
  if (forked()) return check_open();
  MutexLock lock(mu_);
  PGALLOC_RETURN_IF_ERROR(check_open());
  return pages_.adopt(range);
}

std::vector<std::pair<FileRange, uint32_t>> MemoryFile::unadopted() const {
  if (forked()) return {};
  MutexLock lock(mu_);
  return pages_.unadopted().set().export_segments();
}

uint64_t MemoryFile::unadopted_bytes() const {
  if (forked()) return 0;
  MutexLock lock(mu_);
  return pages_.unadopted().set().span();
}

Result<uint64_t> MemoryFile::drop_unadopted() {
  if (forked()) return check_open();
  MutexLock lock(mu_);
  PGALLOC_RETURN_IF_ERROR(check_open());
  const uint64_t bytes = pages_.unadopted().set().span();
  stats_.freed_bytes += pages_.drop_unadopted();
  wake_reclaimer();
  if (incomplete()) pending_changed();
  return bytes;
}

}  // namespace pgalloc
