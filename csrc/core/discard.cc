// Discardable memory: pinning and unpinning, and giving back what nobody has pinned.
#include <algorithm>
#include <array>
#include <new>

#include "core/commit_probe.h"
#include "core/guard.h"
#include "core/memory_file.h"
#include "core/operation.h"

namespace pgalloc {

Status MemoryFile::unpin(Discardable& entry) {
  if (forked()) return check_open();
  {
    MutexLock lock(mu_);
    if (closed()) return check_open();
    if (entry.unpinned) return {};
    PGALLOC_RETURN_IF_ERROR(pages_.unpin(entry.range));
    entry.since = pages_.unpinned().now();
    entry.unpinned = true;
    queue_of(entry).unpinned(entry);
  }
  Guard::instance().something_unpinned();
  return {};
}

void MemoryFile::pin(Discardable& entry, bool in_place) {
  if (forked()) return;
  MutexLock lock(mu_);
  wait_for_discards(entry.range);
  if (closed()) return;
  DiscardQueue& queue = queue_of(entry);
  if (!in_place) {
    queue.remove(entry);
  } else if (entry.unpinned) {
    queue.pinned(entry);
  }
  if (!entry.unpinned) return;
  entry.unpinned = false;
  if (!pages_.unpinned().remove(entry.range, entry.since)) entry.lost = true;
}

void MemoryFile::forget(Discardable& entry) {
  if (forked()) return;
  MutexLock lock(mu_);
  if (entry.list != nullptr) queue_of(entry).remove(entry);
  if (!entry.unpinned || closed()) return;
  entry.unpinned = false;
  (void)pages_.unpinned().remove(entry.range, entry.since);
}

void MemoryFile::wait_for_discards(FileRange range) {
  while (!discarding_.empty() && !range.empty() && !discarding_.is_empty_range(range)) {
    discard_ended_.wait(mu_);
  }
}

// --- Discarding ----------------------------------------------------------------------------------

// What is being discarded at the same time: neighbours go in one punch.
struct MemoryFile::DiscardBatch {
  struct Item {
    FileRange range;
    Discardable* entry = nullptr;
    DiscardQueue* queue = nullptr;
  };
  std::array<Item, 512> items;  // as they were chosen, then by address
  size_t count = 0;
  uint64_t bytes = 0;
  std::array<FileRange, 512> runs;  // what is taken of them
  std::array<bool, 512> punched{};
  size_t run_count = 0;

  bool full() const { return count == items.size(); }
  void add(Discardable& entry, DiscardQueue& queue) {
    items[count++] = {entry.range, &entry, &queue};
    bytes += entry.range.length();
  }
  void sort() {
    std::sort(items.begin(), items.begin() + count,
              [](const Item& a, const Item& b) { return a.range.start < b.range.start; });
  }
  // Behind the last of the neighbours that follow item `first`. REQUIRES: sorted.
  size_t run_end(size_t first) const {
    size_t end = first + 1;
    while (end < count && items[end].range.start == items[end - 1].range.end) ++end;
    return end;
  }
};

// Nothing happens to the pages of `range` from here to settle_discards(), but what this batch does.
// False if somebody needs them.
bool MemoryFile::take_run(FileRange range, DiscardBatch& batch) try {
  if (!pages_.is_discardable(range)) return false;
  discarding_.insert(range, {});
  // Should their owner let go of them meanwhile, they must not reach a new one.
  if (!pages_.inc_ref(range, 0).ok()) {
    discarding_.remove_range(range);
    return false;
  }
  batch.runs[batch.run_count++] = range;
  return true;
} catch (const std::bad_alloc&) {
  discarding_.remove_range(range);
  return false;
}

// Takes what can go of the batch's items, and tells their queues.
void MemoryFile::take_discards(DiscardBatch& batch) {
  batch.sort();
  for (size_t first = 0; first < batch.count;) {
    const size_t end = batch.run_end(first);
    const FileRange run{batch.items[first].range.start, batch.items[end - 1].range.end};
    const bool all = take_run(run, batch);
    for (size_t i = first; i < end; ++i) {
      const DiscardBatch::Item& item = batch.items[i];
      const bool goes = all || (end - first > 1 && take_run(item.range, batch));
      if (goes) {
        item.queue->discarded(*item.entry);
      } else {
        item.queue->refuse(*item.entry);
      }
    }
    first = end;
  }
}

// Empties the pages where the kernel does not count them. The bytes given back: what was written, or
// by how much the file shrank, which tells of pages that were committed but never written, too.
uint64_t MemoryFile::punch_uncounted(FileRange run, const CommitProbe& probe) {
  const uint64_t written = probe.count_written(run);
  const Result<uint64_t> before = file_->stored_bytes();
  (void)release_pages(run);
  const Result<uint64_t> after = file_->stored_bytes();
  const bool shrank = before.ok() && after.ok() && *after < *before;
  return std::max(written, shrank ? *before - *after : 0);
}

// Gives back what is committed of the pages. The bytes of that.
uint64_t MemoryFile::punch_discards(DiscardBatch& batch) {
  const CommitProbe probe(*file_, *chunks_);
  uint64_t given_back = 0;
  for (size_t i = 0; i < batch.run_count; ++i) {
    const FileRange run = batch.runs[i];
    const std::optional<uint64_t> counted = probe.count(run);
    batch.punched[i] = !counted || *counted > 0;
    // Whether they could be emptied or not: nobody may rely on them any more.
    if (!counted) {
      given_back += punch_uncounted(run, probe);
    } else if (*counted > 0) {
      given_back += *counted;
      (void)release_pages(run);
    }
  }
  return given_back;
}

// With `mark`, pages that were empty count as discarded, too: they are not looked at again soon.
void MemoryFile::settle_discards(const DiscardBatch& batch, bool mark) {
  pages_.unpinned().tick();
  for (size_t i = 0; i < batch.run_count; ++i) {
    const FileRange run = batch.runs[i];
    discarding_.remove_range(run);
    if (mark || batch.punched[i]) pages_.unpinned().mark_discarded(run);
    if (batch.punched[i]) {
      pages_.mark_decommitted(run);
      disturb(run);
    }
    const Result<uint64_t> wasted = pages_.dec_ref(run);
    PGALLOC_CHECK(wasted.ok());
    if (*wasted > 0) {
      stats_.freed_bytes += *wasted;
      wake_reclaimer();
    }
  }
  ++changes_;
  --discards_under_way_;
  discard_ended_.notify_all();
}

bool MemoryFile::may_discard() const {
  return !closed() && discards_held_ == 0 && !options_.manual_zeroing;
}

// The queue whose next victim was unpinned before those of the others.
DiscardQueue* MemoryFile::oldest_queue() const {
  DiscardQueue* oldest = nullptr;
  for (const auto& queue : queues_) {
    const auto order = queue->front_order();
    if (order && (oldest == nullptr || *order < *oldest->front_order())) oldest = queue.get();
  }
  return oldest;
}

std::optional<uint64_t> MemoryFile::next_discard_order() const {
  if (forked()) return std::nullopt;
  MutexLock lock(mu_);
  if (!may_discard()) return std::nullopt;
  const DiscardQueue* queue = oldest_queue();
  return queue == nullptr ? std::nullopt : queue->front_order();
}

MemoryFile::Discarded MemoryFile::discard(uint64_t bytes_max, uint64_t order_max) {
  if (forked()) return {};
  DiscardBatch batch;
  std::optional<Operation> operation;
  MutexLock lock(mu_);
  size_t left = 0;  // those that cannot go are put off: everybody is looked at once
  for (const auto& queue : queues_) left += queue->size();
  Discarded result;
  while (true) {
    batch.count = batch.bytes = 0;
    while (left > 0 && !batch.full() && batch.bytes < bytes_max && may_discard()) {
      DiscardQueue* const queue = oldest_queue();
      if (queue == nullptr || *queue->front_order() > order_max) break;
      --left;
      if (Discardable* const victim = queue->take_victim()) batch.add(*victim, *queue);
    }
    if (batch.count == 0) return result;
    take_discards(batch);
    if (batch.run_count > 0) break;
    lock.unlock();  // others may want it more
    lock.lock();
  }
  ++discards_under_way_;
  for (size_t i = 0; i < batch.run_count; ++i) result.bytes += batch.runs[i].length();
  operation.emplace(*this);
  lock.unlock();
  result.given_back = punch_discards(batch);
  lock.lock();
  settle_discards(batch, /*mark=*/true);
  stats_.discards += batch.count;
  stats_.discarded_bytes += result.bytes;
  lock.unlock();
  return result;
}

// The next unpinned pages from `from` on, in pieces that are punched quickly; moves `from` behind
// them: what was discarded before, page by page, and with `waiting` what waits in queues, too.
std::vector<FileRange> MemoryFile::next_unpinned(uint64_t& from, bool waiting) const {
  constexpr size_t kPieces = 64;
  constexpr uint64_t kPieceBytes = uint64_t{8} << 20;
  std::vector<FileRange> pieces;
  const auto cut = [&](FileRange range) {
    while (!range.empty()) {
      if (pieces.size() == kPieces) return false;
      pieces.push_back({range.start, std::min(range.end, range.start + kPieceBytes)});
      from = range.start = pieces.back().end;
    }
    return true;
  };
  const auto& usage = pages_.usage();  // clang's analysis does not know the lock inside the lambda
  pages_.unpinned().set().visit_range(
      {from, UINT64_MAX}, [&](FileRange part, const UnpinnedTraits::Value& value) {
        if (value.discarded_at == 0) return !waiting || cut(part);
        return usage.visit_range(part, [&](FileRange used, const PageUse& use) {
          return use.refs > value.handles || cut(used);
        });
      });
  return pieces;
}

uint64_t MemoryFile::discard_leftovers(uint64_t bytes_max, bool waiting) {
  if (forked()) return 0;
  std::optional<Operation> operation;
  MutexLock lock(mu_);
  if (!may_discard()) return 0;
  operation.emplace(*this);
  const CommitProbe probe(*file_, *chunks_);
  uint64_t given_back = 0;
  for (uint64_t from = 0; given_back < bytes_max && may_discard();) {
    std::vector<FileRange> pieces = next_unpinned(from, waiting);
    if (pieces.empty()) break;
    lock.unlock();
    std::erase_if(pieces, [&](FileRange piece) { return probe.count_written(piece) == 0; });
    lock.lock();
    DiscardBatch batch;
    for (const FileRange& piece : pieces) (void)take_run(piece, batch);
    if (batch.run_count == 0) continue;
    ++discards_under_way_;
    lock.unlock();
    const uint64_t bytes = punch_discards(batch);
    lock.lock();
    settle_discards(batch, /*mark=*/false);
    stats_.discarded_bytes += bytes;
    given_back += bytes;
  }
  lock.unlock();
  return given_back;
}

void MemoryFile::hold_discards() {
  if (forked()) return;
  MutexLock lock(mu_);
  ++discards_held_;
  while (!discarding_.empty()) discard_ended_.wait(mu_);
}

void MemoryFile::resume_discards() {
  if (forked()) return;
  MutexLock lock(mu_);
  --discards_held_;
}

// --- Queues --------------------------------------------------------------------------------------

std::shared_ptr<DiscardQueue> MemoryFile::add_queue(DiscardPolicy policy) {
  auto queue = std::make_shared<DiscardQueue>(policy, /*tells_ids=*/true);
  if (forked()) return queue;
  MutexLock lock(mu_);
  // Of the others, those stay that somebody holds.
  queues_.erase(std::remove_if(queues_.begin() + 1, queues_.end(),
                               [](const auto& old) { return old.use_count() == 1; }),
                queues_.end());
  queues_.push_back(queue);
  return queue;
}

std::vector<uint64_t> MemoryFile::take_discarded_ids(DiscardQueue& queue) {
  if (forked()) return {};
  MutexLock lock(mu_);
  return queue.take_discarded_ids();
}

std::vector<uint64_t> MemoryFile::take_victims(DiscardQueue& queue, uint64_t bytes) {
  if (forked()) return {};
  MutexLock lock(mu_);
  return queue.take_victims(bytes);
}

}  // namespace pgalloc
