#include "core/memory_file.h"

#include <sys/mman.h>

#include <utility>

#include "core/operation.h"
#include "os/syscalls.h"
#include "os/transfer.h"

namespace pgalloc {

using os::sys;

namespace {

Status check_options(const MemoryFileOptions& options) {
  if (options.delayed_eviction > DelayedEviction::kManual) {
    return Status::error(ErrorCode::kOption, "unknown delayed_eviction");
  }
  if (options.capacity && (*options.capacity == 0 || *options.capacity > kMaxOffset ||
                           !is_aligned(*options.capacity, page_size()))) {
    return Status::error(ErrorCode::kOption, "capacity must be a positive number of whole pages");
  }
  return {};
}

// Row A2: DEFAULT means ENABLED; only ENABLED goes together with memory-cgroup pressure.
MemoryFileOptions normalized(MemoryFileOptions options) {
  if (options.delayed_eviction == DelayedEviction::kDefault) {
    options.delayed_eviction = DelayedEviction::kEnabled;
  }
  if (options.delayed_eviction != DelayedEviction::kEnabled) {
    options.use_host_memcg_pressure = false;
  }
  return options;
}

// Names are not used again: a late message about a file that is gone must not reach another one.
uint64_t next_id() {
  static std::atomic<uint64_t> last{0};
  return last.fetch_add(1, std::memory_order_relaxed) + 1;
}

Result<std::unique_ptr<BackingFile>> open_backing(const Backing& backing) {
  if (const auto* path = std::get_if<BackingPath>(&backing)) {
    return BackingFile::open_path(path->path);
  }
  if (const auto* adopted = std::get_if<AdoptedDescriptor>(&backing)) {
    return adopted->duplicate ? BackingFile::duplicate(adopted->fd)
                              : BackingFile::adopt(adopted->fd);
  }
  return BackingFile::create_memfd();
}

}  // namespace

Result<std::shared_ptr<MemoryFile>> MemoryFile::create(const Backing& backing,
                                                       const MemoryFileOptions& options) {
  PGALLOC_RETURN_IF_ERROR(check_options(options));
  // Addresses first: they leave nothing behind, while opening the backing empties the file.
  auto chunks = ChunkMap::reserve(options.capacity);
  if (!chunks.ok()) return std::move(chunks).status();
  auto file = open_backing(backing);
  if (!file.ok()) return std::move(file).status();

  std::shared_ptr<MemoryFile> memory_file(
      new MemoryFile(std::move(*file), std::move(*chunks), normalized(options)), destroy);
  memory_file->map_executable_once();
  if (Status status = LiveFiles::add(memory_file.get()); !status.ok()) {
    memory_file->file_->disown();
    return status;
  }
  return memory_file;
}

MemoryFile::MemoryFile(std::unique_ptr<BackingFile> file, std::shared_ptr<ChunkMap> chunks,
                       const MemoryFileOptions& options)
    : options_(options),
      id_(next_id()),
      file_(std::move(file)),
      chunks_(std::move(chunks)),
      capacity_(chunks_->capacity()) {}

MemoryFile::~MemoryFile() = default;

void MemoryFile::destroy(MemoryFile* file) {
  if (file->forked()) {
    // Locks and condition variables are in the state some thread of the parent left them in:
    // destroying them could wait for ever. Give back what the kernel counts, and leave the rest.
    file->heir_.reset();
    file->file_->close();
    file->chunks_.reset();
    return;
  }
  (void)file->close();
  delete file;
}

void MemoryFile::map_executable_once() {
  if (options_.disable_ima_workaround) return;
  void* page = sys().mmap(nullptr, page_size(), PROT_EXEC, MAP_SHARED, file_->fd(), 0);
  if (page == MAP_FAILED) {
    MutexLock lock(mu_);
    warn("page 0 could not be mapped executable; integrity measurement may hash the file later");
    return;
  }
  sys().munmap(page, page_size());
}

Status MemoryFile::check_open() const {
  if (forked()) {
    return Status::error(ErrorCode::kForked,
                         "this MemoryFile belongs to the parent process; a forked child may only "
                         "read views it inherited");
  }
  if (closed()) return Status::error(ErrorCode::kClosed, "the MemoryFile is closed");
  return {};
}

Status MemoryFile::inc_ref(FileRange range, uint32_t memcg_id) {
  if (forked()) return heir_ ? heir_->inc_ref(range, memcg_id) : check_open();
  MutexLock lock(mu_);
  wait_for_discards(range);
  if (closed()) return check_open();
  return pages_.inc_ref(range, memcg_id);
}

Status MemoryFile::dec_ref(FileRange range) {
  if (forked()) return heir_ ? heir_->dec_ref(range) : check_open();
  MutexLock lock(mu_);
  if (closed()) return check_open();
  return drop_ref(range);
}

Status MemoryFile::drop_ref(FileRange range) {
  Result<uint64_t> wasted = pages_.dec_ref(range);
  if (!wasted.ok()) return std::move(wasted).status();
  if (*wasted > 0) {
    stats_.freed_bytes += *wasted;
    wake_reclaimer();
    if (incomplete()) pending_changed();
  }
  return {};
}

Result<bool> MemoryFile::has_unique_ref(FileRange range) const {
  if (forked()) {
    if (heir_ != nullptr) return heir_->has_unique_ref(range);
    return check_open();
  }
  MutexLock lock(mu_);
  if (closed()) return check_open();
  return pages_.has_unique_ref(range);
}

Status MemoryFile::decommit(FileRange range) {
  PGALLOC_RETURN_IF_ERROR(check_open());
  std::optional<Operation> operation;
  std::vector<FileRange> taken;
  {
    MutexLock lock(mu_);
    PGALLOC_RETURN_IF_ERROR(check_open());
    PGALLOC_RETURN_IF_ERROR(pages_.check_used(range));
    // Contents that are still in the image need not come any more: nobody brings them in from here
    // on, but if the punch fails, they are still wanted. Those that are arriving have to arrive.
    taken = pages_.pending().start(range, Arrival::kLeaving);
    while (pages_.pending().find(range, Arrival::kArriving)) pending_changed_.wait(mu_);
    // Hold the pages: should their last owner let go of them meanwhile, they must not reach a new
    // one before the punch is through.
    Status held = closed() ? check_open() : pages_.inc_ref(range, 0);
    if (!held.ok()) {
      settle_leaving(taken, /*gone=*/false);
      return held;
    }
    operation.emplace(*this);
  }
  Status status = options_.manual_zeroing ? file_->write_zeros(range) : file_->punch(range);
  {
    MutexLock lock(mu_);
    settle_leaving(taken, status.ok());
    if (status.ok()) {
      pages_.pending().forget(range);  // what could not be loaded
      pages_.mark_decommitted(range);
      disturb(range);
      ++changes_;
      stats_.decommitted_bytes += range.length();
    }
    const Result<uint64_t> wasted = pages_.dec_ref(range);
    PGALLOC_CHECK(wasted.ok());
    if (*wasted > 0) {
      stats_.freed_bytes += *wasted;
      wake_reclaimer();
    }
    if (incomplete()) pending_changed();
  }
  return status;
}

Status MemoryFile::write(uint64_t offset, const char* data, uint64_t size) {
  if (discards_elsewhere()) return heir_->write(offset, data, size);
  std::optional<Operation> operation;
  PGALLOC_RETURN_IF_ERROR(begin_operation(operation));
  return os::write_at(file_->fd(), offset, data, size);
}

void MemoryFile::settle_leaving(const std::vector<FileRange>& taken, bool gone) {
  if (closed()) return;  // all is forgotten
  for (const FileRange& part : taken) {
    if (gone) {
      pages_.pending().drop(part);
    } else {
      pages_.pending().put_back(part);
    }
  }
  if (incomplete()) pending_changed();
}

Result<char*> MemoryFile::map_slow(FileRange range) {
  if (discards_elsewhere() && !incomplete()) return heir_->map(range);
  if (closed()) return Status::error(ErrorCode::kClosed, "the MemoryFile is closed");
  if (range.empty()) return Status::error(ErrorCode::kRange, "the range is empty");
  if (range.end > file_->size()) {
    return Status::error(ErrorCode::kRange, "the range reaches beyond the end of the file");
  }
  if (!chunks_->is_mapped(range)) {
    PGALLOC_RETURN_IF_ERROR(check_open());
    PGALLOC_RETURN_IF_ERROR(chunks_->map(file_->fd(), range));
  }
  if (incomplete()) {
    constexpr auto kSlice = std::chrono::seconds(1);
    while (true) {
      const Result<bool> there = load(range, std::chrono::steady_clock::now() + kSlice, nullptr);
      if (!there.ok()) return there.status().clone();
      if (*there) break;
    }
  }
  return chunks_->address(range.start);
}

void MemoryFile::lease_to_child(InheritedFile* inherited) {
  inherited->file = weak_from_this().lock();
  if (inherited->file == nullptr) return;
  MutexLock lock(mu_);
  if (closed() || incomplete()) return;
  inherited->pages = pages_.pinned();
  for (const auto& [range, refs] : inherited->pages) {
    PGALLOC_CHECK(pages_.inc_ref(range, 0).ok());
    PGALLOC_CHECK(pages_.begin_lease(range).ok());
  }
  inherited->ready = true;
}

Status MemoryFile::begin_lease(FileRange range) {
  if (forked()) return check_open();
  MutexLock lock(mu_);
  PGALLOC_RETURN_IF_ERROR(check_open());
  return pages_.begin_lease(range);
}

Status MemoryFile::end_lease(FileRange range) {
  if (forked()) return check_open();
  MutexLock lock(mu_);
  PGALLOC_RETURN_IF_ERROR(check_open());
  return pages_.end_lease(range);
}

Status MemoryFile::drop_lease(FileRange range) {
  if (forked()) return check_open();
  MutexLock lock(mu_);
  PGALLOC_RETURN_IF_ERROR(check_open());
  PGALLOC_RETURN_IF_ERROR(pages_.end_lease(range));
  return drop_ref(range);
}

bool MemoryFile::begin_use() {
  MutexLock lock(mu_);
  if (closed()) return false;
  ++operations_;
  return true;
}

void MemoryFile::end_use() {
  MutexLock lock(mu_);
  if (--operations_ == 0 && closed()) operations_ended_.notify_all();
}

Status MemoryFile::mark_evictable(Evictables::UserId user, FileRange range) {
  PGALLOC_RETURN_IF_ERROR(check_open());
  if (range.empty()) return Status::error(ErrorCode::kRange, "the range is empty");
  evictables_->mark(user, range);
  if (options_.delayed_eviction == DelayedEviction::kDisabled) {
    evictables_->start(user);
  } else if (!should_cache_evictable()) {
    MutexLock lock(mu_);
    if (!evictions_due_) {
      evictions_due_ = true;
      wake_reclaimer();
    }
  }
  return {};
}

bool MemoryFile::should_cache_evictable() const {
  return options_.delayed_eviction == DelayedEviction::kManual || options_.use_host_memcg_pressure;
}

Result<uint64_t> MemoryFile::total_usage() const {
  std::optional<Operation> operation;
  PGALLOC_RETURN_IF_ERROR(begin_operation(operation));
  return file_->stored_bytes();
}

std::vector<PageSegment> MemoryFile::segments() const {
  if (forked()) return {};
  MutexLock lock(mu_);
  return pages_.segments();
}

MemoryFileStats MemoryFile::stats() const {
  if (forked()) return {};
  MutexLock lock(mu_);
  MemoryFileStats stats = stats_;
  stats.unpinned_bytes = pages_.unpinned().set().span();
  return stats;
}

void MemoryFile::warn(std::string message) {
  constexpr size_t kWarningsMax = 100;
  if (warnings_.size() < kWarningsMax) warnings_.push_back(std::move(message));
}

std::vector<std::string> MemoryFile::take_warnings() {
  if (forked()) return {};
  MutexLock lock(mu_);
  return std::exchange(warnings_, {});
}

Status MemoryFile::close() {
  if (forked()) return check_open();
  {
    MutexLock lock(mu_);
    if ((gate_.fetch_or(kClosed) & kClosed) != 0) {
      while (!close_finished_) operations_ended_.wait(mu_);
      return {};
    }
    waste_shrank_.notify_all();
    pending_changed_.notify_all();
  }
  evictables_->shut_down();
  LiveFiles::remove(this);
  Status status;
  {
    MutexLock lock(mu_);
    while (operations_ > 0) operations_ended_.wait(mu_);
    pages_.clear();
    for (const auto& queue : queues_) queue->clear();
    image_.reset();
    waste_shrank_.notify_all();
  }
  // What a failed restore has brought goes, too. Not by truncation: a hook may have made views.
  if ((options_.decommit_on_destroy || abandoned_) && file_->size() > 0) {
    status = file_->punch({0, file_->size()});
  }
  chunks_->seal();
  if (abandoned_) file_->disown();
  file_->close();
  MutexLock lock(mu_);
  close_finished_ = true;
  operations_ended_.notify_all();
  return status;
}

void MemoryFile::abandon() {
  if (forked()) return;
  abandoned_ = true;
  (void)close();
}

std::optional<std::string> MemoryFile::verify() const {
  PGALLOC_CHECK(!forked());
  MutexLock lock(mu_);
  return pages_.verify(file_->size());
}

void MemoryFile::use_real_clock() {
  MutexLock lock(mu_);
  clock_.use_real();
  next_scan_ = {};
}

int MemoryFile::reclaim_waiters() const {
  MutexLock lock(mu_);
  return reclaim_waiters_;
}

size_t MemoryFile::bookkeeping_bytes() const {
  MutexLock lock(mu_);
  return pages_.bookkeeping_bytes();
}

}  // namespace pgalloc
