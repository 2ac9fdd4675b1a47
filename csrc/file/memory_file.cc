#include "file/memory_file.h"

#include <sys/mman.h>

#include <cstring>
#include <utility>

#include "file/file_registry.h"
#include "guard/commit_gate.h"
#include "os/syscalls.h"
#include "os/transfer.h"

namespace pgalloc {

using os::sys;

namespace {

Status check_options(const MemoryFileOptions& options) {
  if (options.delayed_eviction > DelayedEviction::kManual) {
    return Status::error(ErrorCode::kOption, "unknown delayed_eviction");
  }
  if (options.huge_pages > HugePages::kAlways) {
    return Status::error(ErrorCode::kOption, "unknown huge_pages");
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
  if (Status status = FileRegistry::add(memory_file.get()); !status.ok()) {
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
      capacity_(chunks_->capacity()),
      reclaimer_(state_, *file_, *chunks_, *evictables_, options.manual_zeroing),
      discarder_(state_, *file_, *chunks_, reclaimer_, /*enabled=*/!options.manual_zeroing),
      scanner_(state_, *file_, *chunks_, reclaimer_, clock_),
      loader_(state_, *file_, *chunks_, reclaimer_),
      references_(state_, reclaimer_, discarder_, loader_),
      allocator_(state_, *file_, *chunks_, reclaimer_, references_, options) {
  file_->use_mapping(*chunks_);
}

void MemoryFile::destroy(MemoryFile* file) {
  if (file->generation_ != process_generation()) {
    // A forked child: locks and condition variables are in the state some thread of the parent left
    // them in, and destroying them could wait for ever. Give back what the kernel counts, and leave
    // the rest.
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
    FileLock lock(state_);
    state_.warn(
        "page 0 could not be mapped executable; integrity measurement may hash the file later");
    return;
  }
  sys().munmap(page, page_size());
}

// --- Pages ---------------------------------------------------------------------------------------

Status MemoryFile::decommit(FileRange range) {
  std::optional<Operation> operation;
  std::vector<FileRange> taken;
  {
    FileLock lock(state_);
    PGALLOC_RETURN_IF_ERROR(state_.check_open());
    PGALLOC_RETURN_IF_ERROR(state_.pages.check_used(range));
    // Contents that are still in the image need not come any more; but if the punch fails, they are
    // still wanted.
    taken = loader_.take_leaving(range);
    // Hold the pages: should their last owner let go of them meanwhile, they must not reach a new
    // one before the punch is through.
    Status held = state_.closed() ? state_.check_open() : state_.pages.inc_ref(range, 0);
    if (!held.ok()) {
      loader_.settle_leaving(taken, /*gone=*/false);
      return held;
    }
    operation.emplace(state_);
  }
  Status status = options_.manual_zeroing ? file_->write_zeros(range) : file_->punch(range);
  FileLock lock(state_);
  loader_.settle_leaving(taken, status.ok());
  if (status.ok()) {
    state_.pages.pending().forget(range);  // what could not be loaded
    state_.pages.mark_decommitted(range);
    state_.changes.note(range);
    state_.stats.decommitted_bytes += range.length();
  }
  const Result<uint64_t> wasted = state_.pages.dec_ref(range);
  PGALLOC_CHECK(wasted.ok());
  reclaimer_.freed(*wasted);
  if (state_.incomplete()) loader_.pending_changed();
  lock.unlock();  // before the operation ends
  return status;
}

Status MemoryFile::write(uint64_t offset, const char* data, uint64_t size) {
  std::optional<Operation> operation;
  PGALLOC_RETURN_IF_ERROR(Operation::begin(state_, operation));
  return write_as_advised(*file_, *chunks_, {offset, offset + size}, data);
}

Result<char*> MemoryFile::find_mapped(FileRange range) const {
  PGALLOC_RETURN_IF_ERROR(state_.check_open());
  if (range.empty()) return Status::error(ErrorCode::kRange, "the range is empty");
  if (range.end > file_->size()) {
    return Status::error(ErrorCode::kRange, "the range reaches beyond the end of the file");
  }
  return chunks_->is_mapped(range) ? chunks_->address(range.start) : nullptr;
}

Result<char*> MemoryFile::map_slow(FileRange range) {
  Result<char*> address = find_mapped(range);
  if (!address.ok()) return address;
  if (*address == nullptr) PGALLOC_RETURN_IF_ERROR(file_->map(*chunks_, range));
  constexpr auto kSlice = std::chrono::seconds(1);
  while (incomplete()) {
    const auto deadline = std::chrono::steady_clock::now() + kSlice;
    const Result<bool> there = loader_.load(range, deadline, nullptr);
    if (!there.ok()) return there.status().clone();
    if (*there) break;
  }
  return chunks_->address(range.start);
}

Status MemoryFile::unpin(Discardable& entry) {
  PGALLOC_RETURN_IF_ERROR(discarder_.unpin(entry));
  commit_gate().note_unpinned();
  return {};
}

// --- Reclaim and eviction ------------------------------------------------------------------------

bool MemoryFile::wait_for_reclaim(Deadline deadline) {
  retry_threads();
  FileLock lock(state_);
  return reclaimer_.wait_until_done(deadline);
}

Status MemoryFile::mark_evictable(Evictables::UserId user, FileRange range) {
  PGALLOC_RETURN_IF_ERROR(state_.check_open());
  if (range.empty()) return Status::error(ErrorCode::kRange, "the range is empty");
  evictables_->mark(user, range);
  if (options_.delayed_eviction == DelayedEviction::kDisabled) {
    evictables_->start(user);
  } else if (!should_cache_evictable()) {
    FileLock lock(state_);
    reclaimer_.evict_when_idle();
  }
  return {};
}

bool MemoryFile::should_cache_evictable() const {
  return options_.delayed_eviction == DelayedEviction::kManual || options_.use_host_memcg_pressure;
}

// --- What is in it -------------------------------------------------------------------------------

Result<uint64_t> MemoryFile::total_usage() const {
  std::optional<Operation> operation;
  PGALLOC_RETURN_IF_ERROR(Operation::begin(state_, operation));
  return file_->stored_bytes();
}

Status MemoryFile::check_accounting() const {
  if (options_.accounting) return {};
  return Status::error(ErrorCode::kOption,
                       "the MemoryFile was made with accounting=False: ask for total_usage()");
}

std::vector<MemoryFile::SeenSegment> MemoryFile::segments() const {
  FileLock lock(state_);
  std::vector<SeenSegment> seen;
  for (const PageSegment& segment : state_.pages.segments()) {
    seen.push_back({segment, scanner_.huge_usage().bytes_of(segment)});
  }
  return seen;
}

Result<uint64_t> MemoryFile::huge_usage() const {
  FileLock lock(state_);
  PGALLOC_RETURN_IF_ERROR(state_.check_open());
  return scanner_.huge_usage().bytes();
}

bool MemoryFile::is_for_huge_pages(FileRange range) const {
  FileLock lock(state_);
  return state_.pages.areas().at(range.start) == PageSize::kHuge;
}

MemoryFileStats MemoryFile::stats() const {
  FileLock lock(state_);
  MemoryFileStats stats = state_.stats;
  stats.unpinned_bytes = state_.pages.unpinned().set().span() + state_.pages.kept().set().span();
  stats.waiting_bytes = state_.pages.waste_bytes() + state_.pages.releasing_bytes();
  return stats;
}

std::vector<std::string> MemoryFile::take_warnings() {
  FileLock lock(state_);
  return std::exchange(state_.warnings, {});
}

// --- Saving and restoring ------------------------------------------------------------------------

Result<std::optional<MemoryFile::Capture>> MemoryFile::capture(
    std::chrono::steady_clock::time_point deadline) {
  PGALLOC_RETURN_IF_ERROR(state_.check_open());
  if (!evictables_->empty()) {
    return Status::error(ErrorCode::kSnapshot,
                         "an evictable user is registered: evict before saving");
  }
  retry_threads();
  FileLock lock(state_);
  if (!reclaimer_.wait_until_done(deadline)) return std::optional<Capture>();
  PGALLOC_RETURN_IF_ERROR(state_.check_open());
  return std::optional<Capture>(
      {.file_size = file_->size(), .segments = state_.pages.owned_segments()});
}

Status MemoryFile::begin_access(Access& access) const {
  PGALLOC_RETURN_IF_ERROR(Operation::begin(state_, access.operation));
  access.file = file_.get();
  access.chunks = chunks_.get();
  return {};
}

Status MemoryFile::restore(uint64_t file_size, const std::vector<image::Usage>& usage) {
  std::vector<PageSegment> segments;
  segments.reserve(usage.size());
  uint64_t bytes = 0;
  for (const image::Usage& entry : usage) {
    const bool huge = entry.huge && allocator_.may_use_huge_pages() &&
                      align_up(entry.range.end, huge_page_size()) <= file_size;
    segments.push_back({entry.range,
                        {entry.refs, entry.memcg_id, entry.kind, false},
                        huge ? PageSize::kHuge : PageSize::kSmall});
    bytes += entry.range.length();
  }
  FileLock lock(state_);
  PGALLOC_RETURN_IF_ERROR(state_.check_open());
  if (file_size > capacity()) {
    return Status::error(ErrorCode::kOutOfMemory,
                         "the saved file is larger than the capacity of this one");
  }
  if (bytes > options_.max_allocatable_bytes.value_or(UINT64_MAX)) {
    return Status::error(ErrorCode::kOutOfMemory,
                         "the image holds more than max_allocatable_bytes");
  }
  if (state_.pages.allocated_bytes() > 0 || loader_.used()) {
    return Status::error(ErrorCode::kSnapshot, "only a fresh MemoryFile can be restored into");
  }
  if (file_size > file_->size()) PGALLOC_RETURN_IF_ERROR(file_->grow(file_size));
  state_.pages.restore(segments);
  state_.changes.count();
  advise_restored();
  return {};
}

// Of huge pages that are used in part, nothing is advised: they are in small pages.
void MemoryFile::advise_restored() {
  if (!state_.pages.areas().has_huge()) return;
  RangeSet used;
  for (const PageSegment& segment : state_.pages.segments()) {
    if (segment.size == PageSize::kHuge && segment.use.refs > 0) used.insert(segment.range, {});
  }
  for (auto run = used.first(); run.ok(); run = run.next()) {
    const FileRange whole = whole_huge_pages_in(run.range());
    if (!whole.empty()) chunks_->advise(whole, /*huge=*/true);
  }
}

Status MemoryFile::start_loading(std::shared_ptr<const ExtentSource> source, unsigned threads) {
  PGALLOC_RETURN_IF_ERROR(loader_.begin(std::move(source)));
  return incomplete() ? FileRegistry::start_loaders(this, threads) : Status();
}

// --- The end -------------------------------------------------------------------------------------

Status MemoryFile::close() {
  {
    FileLock lock(state_);
    if ((state_.gate.fetch_or(FileState::kClosed) & FileState::kClosed) != 0) {
      while (!close_finished_) state_.wait(state_.operations_ended);
      return {};
    }
    reclaimer_.notify_waiters();
    loader_.notify_waiters();
  }
  evictables_->shut_down();
  FileRegistry::remove(this);
  {
    FileLock lock(state_);
    while (state_.operations > 0) state_.wait(state_.operations_ended);
    state_.pages.clear();
    discarder_.clear();
    loader_.clear();
    reclaimer_.clear();
  }
  Status status;
  // What a failed restore has brought goes, too. Not by truncation: a hook may have made views.
  if ((options_.decommit_on_destroy || rolled_back_) && file_->size() > 0) {
    status = file_->punch({0, file_->size()});
  }
  chunks_->seal();
  if (rolled_back_) file_->disown();
  file_->close();
  FileLock lock(state_);
  close_finished_ = true;
  state_.operations_ended.notify_all();
  return status;
}

void MemoryFile::roll_back() {
  rolled_back_ = true;
  (void)close();
}

// --- For the registry ----------------------------------------------------------------------------

bool MemoryFile::begin_use() {
  FileLock lock(state_);
  if (state_.closed()) return false;
  ++state_.operations;
  return true;
}

void MemoryFile::end_use() {
  FileLock lock(state_);
  if (--state_.operations == 0 && state_.closed()) state_.operations_ended.notify_all();
}

Status MemoryFile::start_threads() {
  PGALLOC_RETURN_IF_ERROR(reclaimer_.start());
  loader_.start_threads();
  return {};
}

void MemoryFile::stop_threads() {
  loader_.stop_threads();
  reclaimer_.stop();
}

void MemoryFile::restart_threads() {
  lacks_threads_ = !start_threads().ok();
  if (!lacks_threads_) return;
  FileLock lock(state_);
  state_.warn(
      "the reclaimer thread could not be started again: freed pages stay in memory until it can");
}

void MemoryFile::retry_threads() {
  if (lacks_threads_.load(std::memory_order_relaxed) && FileRegistry::start_threads(this).ok()) {
    lacks_threads_ = false;
  }
}

bool MemoryFile::has_unpinned() const {
  FileLock lock(state_);
  return !state_.pages.unpinned().empty() || !state_.pages.kept().empty();
}

uint64_t MemoryFile::release_kept(Time deadline) {
  FileLock lock(state_);
  return reclaimer_.release_kept(deadline);
}

void MemoryFile::start_evictions_under_pressure() {
  if (options_.use_host_memcg_pressure) evictables_->start_all();
}

// --- For tests -----------------------------------------------------------------------------------

std::optional<std::string> MemoryFile::verify() const {
  if (auto broken = evictables_->verify()) return "evictables: " + *broken;
  FileLock lock(state_);
  if (auto broken = state_.pages.verify(file_->size())) return broken;
  if (auto broken = reclaimer_.verify()) return "reclaimer: " + *broken;
  if (auto broken = discarder_.verify()) return "discarder: " + *broken;
  if (auto broken = scanner_.verify()) return "commit scanner: " + *broken;
  if (auto broken = loader_.verify()) return "loader: " + *broken;
  return std::nullopt;
}

void MemoryFile::use_real_clock() {
  clock_.use_real();
  scanner_.reset_throttle();
}

size_t MemoryFile::bookkeeping_bytes() const {
  FileLock lock(state_);
  return state_.pages.bookkeeping_bytes();
}

}  // namespace pgalloc
