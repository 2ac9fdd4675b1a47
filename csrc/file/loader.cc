#include "file/loader.h"
#include "os/thread.h"

#include <new>
#include <string>
#include <system_error>
#include <utility>

#include "file/operation.h"
#include "guard/commit_gate.h"

namespace pgalloc {

namespace testing {
constinit std::atomic<bool> loaders_allowed{true};
}

namespace {

constexpr FileRange kEverything{0, kMaxOffset};
constexpr size_t kSpareBuffersMax = 8;

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

uint64_t stored_bytes(const image::ExtentHead& head, std::span<const FileRange> parts) {
  uint64_t bytes = 0;
  visit_stored(head, parts, [&](FileRange range, uint64_t) {
    bytes += range.length();
    return true;
  });
  return bytes;
}

}  // namespace

Status Loader::write_restored(const image::ExtentHead& head, const char* raw) {
  const FileRange whole[] = {head.range};
  CommitReservation reservation;
  PGALLOC_RETURN_IF_ERROR(commit_gate().reserve(stored_bytes(head, whole), reservation));
  std::optional<Operation> operation;
  PGALLOC_RETURN_IF_ERROR(Operation::begin(state_, operation));
  PGALLOC_RETURN_IF_ERROR(write(head, whole, raw));
  const std::vector<FileRange> stored = stored_ranges(head, whole);
  FileLock lock(state_);
  for (const FileRange& range : stored) state_.pages.mark_committed(range, nullptr);
  return {};
}

// A huge page of which the image stores every page is written as a huge page. Any other would commit pages
// that the image does not store, so it is written as small pages.
Status Loader::write(const image::ExtentHead& head, std::span<const FileRange> parts,
                     const char* raw) {
  const FileRange whole = whole_huge_pages_in(head.range);
  const bool comes_whole = whole == head.range && stored_bytes(head, parts) == whole.length();
  const FileRange around{align_down(head.range.start, huge_page_size()),
                         align_up(head.range.end, huge_page_size())};
  if (!comes_whole && around.end <= chunks_.capacity()) chunks_.advise(around, /*huge=*/false);
  Status status;
  visit_stored(head, parts, [&](FileRange range, uint64_t at) {
    status = write_as_advised(file_, chunks_, range, raw + at);
    return status.ok();
  });
  return status;
}

Status Loader::begin(std::shared_ptr<const ExtentSource> source) {
  FileLock lock(state_);
  PGALLOC_RETURN_IF_ERROR(state_.check_open());
  PageStates& pages = state_.pages;
  for (const image::IndexEntry& entry : source->index()) {
    std::vector<FileRange> used;
    pages.usage().visit_range(entry.range, [&](FileRange part, const PageUse& use) {
      if (use.refs > 0) used.push_back(part);
    });
    if (used.empty()) {
      return Status::error(ErrorCode::kSnapshotCorrupt,
                           "an extent of the image stands for pages that are not in use");
    }
    for (const FileRange& part : used) pages.pending().expect(part);
  }
  if (pages.pending().empty()) return {};
  source_ = std::move(source);
  spare_buffers_.reserve(kSpareBuffersMax);
  cursor_ = 0;
  state_.gate.fetch_or(FileState::kIncomplete);
  return {};
}

// --- An extent on its way ------------------------------------------------------------------------

Status ArrivingExtent::deliver(std::span<const char> raw) {
  PGALLOC_CHECK_OP(raw.size(), ==, raw_length());
  return loader_.deliver(*this, raw.data());
}

void ArrivingExtent::fail(Status status) { loader_.fail_arrival(*this, std::move(status)); }

ArrivingExtent::~ArrivingExtent() {
  if (generation_ == process_generation()) loader_.end(*this);
}

std::unique_ptr<ArrivingExtent> Loader::take_extent(uint64_t waiting) {
  const size_t index = source_->first_extent_after(waiting);
  std::vector<FileRange> parts = state_.pages.pending().start(source_->index()[index].range);
  std::unique_ptr<ArrivingExtent> extent(
      new ArrivingExtent(*this, source_, index, std::move(parts)));
  if (!spare_buffers_.empty()) {
    extent->buffer_ = std::move(spare_buffers_.back());
    spare_buffers_.pop_back();
  }
  return extent;
}

Result<std::unique_ptr<ArrivingExtent>> Loader::fetch(std::unique_ptr<ArrivingExtent> extent) {
  Result<image::ExtentHead> head = extent->source_->read_extent(extent->index_, extent->buffer_);
  if (!head.ok()) {
    extent->fail(std::move(head).status());
    return std::unique_ptr<ArrivingExtent>();
  }
  extent->head_ = *head;
  if (extent->head_.encoding != image::Encoding::kRaw) return extent;
  PGALLOC_RETURN_IF_ERROR(extent->deliver(extent->encoded()));
  return std::unique_ptr<ArrivingExtent>();
}

void Loader::end(ArrivingExtent& extent) {
  FileLock lock(state_);
  if (state_.closed()) return;
  if (source_ != nullptr && spare_buffers_.size() < spare_buffers_.capacity()) {
    spare_buffers_.push_back(std::move(extent.buffer_));
  }
  if (extent.settled_) return;
  for (const FileRange& part : extent.parts_) state_.pages.pending().put_back(part);
  pending_changed();
}

Status Loader::deliver(ArrivingExtent& extent, const char* raw) {
  CommitReservation reservation;
  PGALLOC_RETURN_IF_ERROR(
      commit_gate().reserve(stored_bytes(extent.head_, extent.parts_), reservation));
  extent.settled_ = true;
  std::optional<Operation> operation;
  if (!Operation::begin(state_, operation).ok()) return {};  // closed: nothing waits any more
  Status status = write(extent.head_, extent.parts_, raw);
  if (!status.ok()) {
    for (const FileRange& part : extent.parts_) {
      // What was written of them must not stay as if it were theirs.
      if (!file_.punch(part).ok()) (void)file_.write_zeros(part);
    }
    fail_arrival(extent, std::move(status));
    return {};
  }
  const std::vector<FileRange> stored = stored_ranges(extent.head_, extent.parts_);
  FileLock lock(state_);
  for (const FileRange& range : stored) state_.pages.mark_committed(range, nullptr);
  for (const FileRange& part : extent.parts_) state_.pages.pending().arrived(part);
  pending_changed();
  return {};
}

void Loader::fail_arrival(ArrivingExtent& extent, Status status) {
  extent.settled_ = true;
  FileLock lock(state_);
  PageStates& pages = state_.pages;
  // close() waits for a deliver() that fails; a decoder that fails later finds all forgotten.
  if (state_.closed() && pages.pending().empty()) return;
  const auto error = static_cast<uint32_t>(errors_.size());
  state_.warn("pages of the image could not be loaded: " + status.describe());
  errors_.push_back(std::move(status));
  std::vector<FileRange> owned;
  std::vector<FileRange> freed;  // meanwhile: their contents do not matter any more
  for (const FileRange& part : extent.parts_) {
    pages.usage().visit_range(part, [&](FileRange range, const PageUse& use) {
      (use.refs > 0 ? owned : freed).push_back(range);
    });
    pages.mark_decommitted(part);
    state_.changes.note(part);
  }
  for (const FileRange& range : owned) pages.pending().broke(range, error);
  for (const FileRange& range : freed) pages.pending().arrived(range);
  pending_changed();
}

void Loader::pending_changed() {
  const PendingPages& pending = state_.pages.pending();
  if (pending.outstanding_bytes() == 0) drop_source();
  if (pending.empty()) {
    state_.gate.fetch_and(static_cast<uint8_t>(~FileState::kIncomplete));
  }
  changed_.notify_all();
  if (state_.pages.waste_bytes() > 0) reclaimer_.wake();
}

std::vector<FileRange> Loader::take_leaving(FileRange range) {
  PendingPages& pending = state_.pages.pending();
  std::vector<FileRange> taken = pending.start(range, Arrival::kLeaving);
  // Once the file is closed, no page arrives any more, and it is not said which do not.
  while (!state_.closed() && pending.find(range, Arrival::kArriving)) state_.wait(changed_);
  return taken;
}

void Loader::settle_leaving(const std::vector<FileRange>& taken, bool gone) {
  if (state_.closed()) return;  // all is forgotten
  for (const FileRange& part : taken) {
    if (gone) {
      state_.pages.pending().drop(part);
    } else {
      state_.pages.pending().put_back(part);
    }
  }
  if (state_.incomplete()) pending_changed();
}

// --- Threads that need pages ---------------------------------------------------------------------

// Counts one; memory may run out under it.
class Loader::Waiter {
 public:
  explicit Waiter(Loader& loader) : loader_(loader) { ++loader_.waiters_; }
  ~Waiter() {
    if (--loader_.waiters_ == 0) loader_.changed_.notify_all();
  }
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;

 private:
  Loader& loader_;
};

Result<bool> Loader::load(FileRange range, Time deadline, std::unique_ptr<ArrivingExtent>* encoded,
                          bool ignore_broken) {
  if (!state_.incomplete()) return true;
  const Waiter waiter(*this);
  FileLock lock(state_);
  while (true) {
    PGALLOC_RETURN_IF_ERROR(state_.check_open());
    const PendingPages& pending = state_.pages.pending();
    if (const auto error = pending.find_error(range); error && !ignore_broken) {
      return errors_[*error].clone();
    }
    const bool late = std::chrono::steady_clock::now() >= deadline;
    // Without a decoder, encoded extents are waited for.
    const bool can_take =
        !late && (encoded != nullptr || (source_ && !source_->has_encoded_extents()));
    if (const auto waiting = pending.find(range, Arrival::kWaiting); waiting && can_take) {
      std::unique_ptr<ArrivingExtent> extent = take_extent(waiting->start);
      lock.unlock();
      auto fetched = fetch(std::move(extent));
      lock.lock();
      if (!fetched.ok()) return std::move(fetched).status();
      if (*fetched == nullptr) continue;
      *encoded = std::move(*fetched);
      return false;
    }
    if (!pending.find(range, Arrival::kWaiting) && !pending.find(range, Arrival::kArriving) &&
        !pending.find(range, Arrival::kLeaving)) {
      return true;
    }
    if (!state_.wait_until(changed_, deadline)) return false;
  }
}

// --- Threads that load everything ----------------------------------------------------------------

Result<bool> Loader::load_next(std::unique_ptr<ArrivingExtent>* encoded) {
  if (!state_.incomplete()) return false;
  std::unique_ptr<ArrivingExtent> extent;
  {
    FileLock lock(state_);
    yield_to_waiters();
    if (state_.closed() || stops_) return false;
    const PendingPages& pending = state_.pages.pending();
    auto waiting = pending.find({cursor_, kMaxOffset}, Arrival::kWaiting);
    if (!waiting) waiting = pending.find(kEverything, Arrival::kWaiting);
    if (!waiting) return false;
    cursor_ = waiting->start;
    extent = take_extent(waiting->start);
  }
  auto fetched = fetch(std::move(extent));
  if (!fetched.ok()) return std::move(fetched).status();
  if (*fetched != nullptr) *encoded = std::move(*fetched);
  return true;
}

// For a moment, a thread that needs pages has the machine for itself.
void Loader::yield_to_waiters() {
  const auto until = std::chrono::steady_clock::now() + yield_max_;
  while (waiters_ > 0 && !state_.closed() && !stops_) {
    if (!state_.wait_until(changed_, until)) return;
  }
}

// Pages also arrive without these threads, when they are needed: no thread to be had is no failure.
void Loader::start_threads() {
  if (!threads_.empty() || state_.closed() || !loading()) return;
  stops_ = false;  // for threads from outside, too
  if (!testing::loaders_allowed) return;
  try {
    const os::WithoutSignals quiet;
    for (unsigned i = 0; i < thread_count_; ++i) threads_.emplace_back([this] { run(); });
  } catch (const std::system_error&) {
    thread_count_ = static_cast<unsigned>(threads_.size());  // they do it all
  }
}

void Loader::stop_threads() {
  stops_ = true;
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void Loader::run() try {
  std::unique_ptr<ArrivingExtent> encoded;
  while (true) {
    const Result<bool> any = load_next(&encoded);
    if (!any.ok()) break;
    if (!*any) return;
    PGALLOC_CHECK(encoded == nullptr);
  }
  warn_of_no_memory();
} catch (const std::bad_alloc&) {
  warn_of_no_memory();
}

void Loader::warn_of_no_memory() {
  FileLock lock(state_);
  state_.warn("out of memory: pages of the image are loaded when they are needed");
}

bool Loader::loading() const {
  if (!state_.incomplete()) return false;
  FileLock lock(state_);
  return source_ != nullptr;
}

std::optional<std::string> Loader::verify() const {
  if (state_.closed()) return std::nullopt;
  const PendingPages& pending = state_.pages.pending();
  if (pending.outstanding_bytes() > 0 && source_ == nullptr) return "pages wait without a source";
  if (state_.incomplete() == pending.empty()) return "the gate does not say whether pages wait";
  std::optional<std::string> broken;
  const size_t errors = errors_.size();  // the analysis does not know the lock in the lambda
  pending.set().visit_range(kEverything, [&](FileRange, const PendingTraits::Value& value) {
    if (value.arrival == Arrival::kBroken && value.error >= errors) {
      broken = "a page is broken for no reason";
    }
  });
  return broken;
}

Loader::Progress Loader::progress() const {
  FileLock lock(state_);
  const PendingPages& pending = state_.pages.pending();
  return {.total_bytes = pending.expected_bytes(),
          .pending_bytes = pending.outstanding_bytes(),
          .dropped_bytes = pending.forgotten_bytes(),
          .failed_bytes = pending.bytes(Arrival::kBroken)};
}

}  // namespace pgalloc
