#include "file/discarder.h"

#include <algorithm>
#include <array>
#include <new>
#include <utility>

#include "file/operation.h"

namespace pgalloc {

// --- Handles -------------------------------------------------------------------------------------

Status Discarder::unpin(Discardable& entry) {
  FileLock lock(state_);
  PGALLOC_RETURN_IF_ERROR(state_.check_open());
  if (entry.unpinned) return {};
  PGALLOC_RETURN_IF_ERROR(state_.pages.unpin(entry.range));
  entry.since = state_.pages.unpinned().now();
  entry.unpinned = true;
  queue_of(entry).unpinned(entry);
  return {};
}

void Discarder::pin(Discardable& entry, bool in_place) {
  FileLock lock(state_);
  wait_for_discards(entry.range);
  pin_locked(entry, in_place);
}

bool Discarder::try_pin(Discardable& entry) {
  FileLock lock(state_);
  if (is_being_discarded(entry.range)) return false;
  pin_locked(entry, /*in_place=*/false);
  return true;
}

void Discarder::pin_locked(Discardable& entry, bool in_place) {
  if (state_.closed()) return;
  DiscardQueue& queue = queue_of(entry);
  if (!in_place) {
    queue.remove(entry);
  } else if (entry.unpinned) {
    queue.pinned(entry);
  }
  if (!entry.unpinned) return;
  entry.unpinned = false;
  if (!state_.pages.unpinned().remove(entry.range, entry.since)) entry.discarded = true;
}

void Discarder::forget(Discardable& entry) {
  FileLock lock(state_);
  forget_locked(entry);
}

void Discarder::forget_locked(Discardable& entry) {
  if (entry.list != nullptr) queue_of(entry).remove(entry);
  if (!entry.unpinned || state_.closed()) return;
  entry.unpinned = false;
  (void)state_.pages.unpinned().remove(entry.range, entry.since);
}

void Discarder::split(Discardable& entry, Discardable& rest, uint64_t at) {
  FileLock lock(state_);
  if (entry.list != nullptr) queue_of(entry).remove(entry);
  rest.range = {at, entry.range.end};
  rest.queue = entry.queue;
  rest.since = entry.since;
  rest.unpinned = entry.unpinned;
  rest.discarded = entry.discarded;
  entry.range.end = at;
}

// The pages of `next` were pinned until now: since the first was unpinned they were not discarded.
void Discarder::join(Discardable& entry, Discardable& next) {
  FileLock lock(state_);
  for (Discardable* const each : {&entry, &next}) {
    if (each->list != nullptr) queue_of(*each).remove(*each);
  }
  entry.range.end = next.range.end;
  next.unpinned = false;
  if (entry.unpinned && !state_.closed()) queue_of(entry).unpinned(entry);
}

bool Discarder::is_being_discarded(FileRange range) const {
  return !discarding_.empty() && !range.empty() && !discarding_.is_empty_range(range);
}

void Discarder::wait_for_discards(FileRange range) {
  while (is_being_discarded(range)) state_.wait(ended_);
}

// --- Discarding ----------------------------------------------------------------------------------

// What is being discarded at the same time: neighbours go in one punch.
struct Discarder::Batch {
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

bool Discarder::may_discard() const { return enabled_ && !state_.closed() && held_ == 0; }

// The queue whose next victim was unpinned before those of the others. What others pay for comes last: it
// brings nothing, unless their memory cgroup lies below this process's limit.
DiscardQueue* Discarder::oldest_queue() const {
  DiscardQueue* oldest = nullptr;
  Turn its_turn;
  for (const auto& queue : queues_) {
    const auto order = queue->front_order();
    if (!order) continue;
    const Turn turn(!queue->payer().empty(), *order);
    if (oldest != nullptr && its_turn <= turn) continue;
    oldest = queue.get();
    its_turn = turn;
  }
  return oldest;
}

std::optional<Discarder::Turn> Discarder::turn_of_queues() const {
  FileLock lock(state_);
  if (!may_discard()) return std::nullopt;
  const DiscardQueue* queue = oldest_queue();
  if (queue == nullptr) return std::nullopt;
  return Turn(!queue->payer().empty(), *queue->front_order());
}

std::optional<uint64_t> Discarder::next_order() const {
  const std::optional<Turn> own = turn_of_queues();
  uint64_t order = 0;
  MutexLock lock(keepers_mu_);
  const bool any = !keepers_.empty() && can_discard() && oldest_keeper(&order) != nullptr;
  if (!own) return any ? std::optional(order) : std::nullopt;
  return any && Turn(false, order) < *own ? order : own->second;
}

void Discarder::choose(Batch& batch, uint64_t bytes_max, uint64_t order_max, DiscardQueue* only,
                       size_t& left) {
  batch.count = batch.bytes = 0;
  while (left > 0 && !batch.full() && batch.bytes < bytes_max && may_discard()) {
    DiscardQueue* const queue = only != nullptr ? only : oldest_queue();
    const auto order = queue == nullptr ? std::nullopt : queue->front_order();
    if (!order || *order > order_max) break;
    --left;
    if (Discardable* const victim = queue->take_victim()) batch.add(*victim, *queue);
  }
}

// Takes what can go of the batch's items. The others go back to their queues.
void Discarder::take(Batch& batch) {
  batch.sort();
  for (size_t first = 0; first < batch.count;) {
    const size_t end = batch.run_end(first);
    const FileRange run{batch.items[first].range.start, batch.items[end - 1].range.end};
    const bool all = take_run(run, batch);
    for (size_t i = first; i < end; ++i) {
      const Batch::Item& item = batch.items[i];
      const bool goes = all || (end - first > 1 && take_run(item.range, batch));
      if (!goes) item.queue->refuse(*item.entry);
    }
    first = end;
  }
}

// Nothing happens to the pages of `range` from here to settle(), but what this batch does. False if
// a handle needs them.
bool Discarder::take_run(FileRange range, Batch& batch) {
  return state_.pages.is_discardable(range) && take_run_unchecked(range, batch);
}

bool Discarder::take_run_unchecked(FileRange range, Batch& batch) try {
  discarding_.insert(range, {});
  if (!state_.pages.inc_ref(range, 0).ok()) {  // invariant 2
    discarding_.remove_range(range);
    return false;
  }
  batch.runs[batch.run_count++] = range;
  return true;
} catch (const std::bad_alloc&) {
  discarding_.remove_range(range);
  return false;
}

Discarded Discarder::discard(uint64_t bytes_max, uint64_t order_max) {
  {
    MutexLock lock(keepers_mu_);
    // Each keeper is asked twice at most: it may have nothing that can go.
    for (size_t tries = 2 * keepers_.size(); tries > 0 && can_discard(); --tries) {
      uint64_t order = 0;
      Keeper* const keeper = oldest_keeper(&order);
      const std::optional<Turn> own = turn_of_queues();
      if (keeper == nullptr || order > order_max || (own && *own < Turn(false, order))) break;
      const bool own_first = own && !own->first;
      const uint64_t until = own_first ? std::min(order_max, own->second) : order_max;
      const Discarded discarded = keeper->discard(bytes_max, until);
      if (discarded.bytes > 0) return discarded;
    }
  }
  const Discarded discarded = discard_of(nullptr, bytes_max, order_max);
  if (discarded.bytes > 0) return discarded;
  MutexLock lock(keepers_mu_);
  for (Keeper* const keeper : keepers_) {
    if (!can_discard()) break;
    const Discarded last = keeper->discard(bytes_max, order_max);
    if (last.bytes > 0) return last;
  }
  return {};
}

Discarded Discarder::discard_paid_by(std::string_view payer, uint64_t bytes_max) {
  std::shared_ptr<DiscardQueue> queue;
  {
    FileLock lock(state_);
    queue = find_paid_by(payer);
  }
  return queue == nullptr ? Discarded{} : discard_of(queue.get(), bytes_max, UINT64_MAX);
}

Discarded Discarder::discard_of(DiscardQueue* only, uint64_t bytes_max, uint64_t order_max) {
  Batch batch;
  std::optional<Operation> operation;
  FileLock lock(state_);
  size_t left = 0;  // those that cannot go are put off: each entry is looked at once
  for (const auto& queue : queues_) {
    if (only == nullptr || only == queue.get()) left += queue->size();
  }
  Discarded result;
  while (true) {
    choose(batch, bytes_max, order_max, only, left);
    if (batch.count == 0) return result;
    take(batch);
    if (batch.run_count > 0) break;
    lock.unlock();  // others may want it more
    lock.lock();
  }
  ++under_way_;
  for (size_t i = 0; i < batch.run_count; ++i) result.bytes += batch.runs[i].length();
  operation.emplace(state_);
  lock.unlock();
  result.given_back = punch(batch);
  lock.lock();
  settle(batch, /*mark=*/true);
  state_.stats.discards += batch.count;
  state_.stats.discarded_bytes += result.bytes;
  lock.unlock();
  return result;
}

// Gives back what is committed of the pages. The bytes of that.
uint64_t Discarder::punch(Batch& batch) {
  const CommitProbe probe(file_, chunks_);
  uint64_t given_back = 0;
  for (size_t i = 0; i < batch.run_count; ++i) {
    const FileRange run = batch.runs[i];
    const std::optional<uint64_t> counted = probe.count(run);
    batch.punched[i] = !counted || *counted > 0;
    // Whether they could be emptied or not: no handle may rely on them any more.
    if (!counted) {
      given_back += punch_uncounted(run, probe);
    } else if (*counted > 0) {
      given_back += *counted;
      (void)reclaimer_.release_pages(run);
    }
  }
  return given_back;
}

// Empties the pages where the kernel does not count them. The bytes given back: what was written, or
// by how much the file shrank, which tells of pages that were committed but never written, too.
uint64_t Discarder::punch_uncounted(FileRange run, const CommitProbe& probe) {
  const uint64_t written = probe.count_written(run);
  const Result<uint64_t> before = file_.stored_bytes();
  (void)reclaimer_.release_pages(run);
  const Result<uint64_t> after = file_.stored_bytes();
  const bool shrank = before.ok() && after.ok() && *after < *before;
  return std::max(written, shrank ? *before - *after : 0);
}

// With `mark`, pages that were empty count as discarded, too: they are not looked at again soon.
void Discarder::settle(const Batch& batch, bool mark) {
  PageStates& pages = state_.pages;
  pages.unpinned().tick();
  for (size_t i = 0; i < batch.run_count; ++i) {
    const FileRange run = batch.runs[i];
    discarding_.remove_range(run);
    if (mark || batch.punched[i]) pages.unpinned().mark_discarded(run);
    if (batch.punched[i]) {
      pages.mark_decommitted(run);
      state_.changes.note(run);
    }
    const Result<uint64_t> wasted = pages.dec_ref(run);
    PGALLOC_CHECK(wasted.ok());
    reclaimer_.freed(*wasted);
  }
  state_.changes.count();
  --under_way_;
  ended_.notify_all();
}

// --- By address ----------------------------------------------------------------------------------

// The next unpinned pages from `from` on, in pieces that are punched quickly; moves `from` behind
// them: what was discarded before, page by page, and with `waiting` what waits in queues, too.
std::vector<FileRange> Discarder::next_unpinned(uint64_t& from, bool waiting) const {
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
  const auto& usage = state_.pages.usage();  // the analysis does not know the lock in the lambda
  state_.pages.unpinned().set().visit_range(
      {from, UINT64_MAX}, [&](FileRange part, const UnpinnedTraits::Value& value) {
        if (value.discarded_at == 0) return !waiting || cut(part);
        return usage.visit_range(part, [&](FileRange used, const PageUse& use) {
          return use.refs > value.handles || cut(used);
        });
      });
  return pieces;
}

uint64_t Discarder::sweep(uint64_t bytes_max, bool waiting) {
  std::optional<Operation> operation;
  FileLock lock(state_);
  if (!may_discard()) return 0;
  operation.emplace(state_);
  const CommitProbe probe(file_, chunks_);
  uint64_t given_back = 0;
  for (uint64_t from = 0; given_back < bytes_max && may_discard();) {
    std::vector<FileRange> pieces = next_unpinned(from, waiting);
    if (pieces.empty()) break;
    lock.unlock();
    std::erase_if(pieces, [&](FileRange piece) { return probe.count_written(piece) == 0; });
    lock.lock();
    Batch batch;
    for (const FileRange& piece : pieces) (void)take_run(piece, batch);
    if (batch.run_count == 0) continue;
    ++under_way_;
    lock.unlock();
    const uint64_t bytes = punch(batch);
    lock.lock();
    settle(batch, /*mark=*/false);
    state_.stats.discarded_bytes += bytes;
    given_back += bytes;
  }
  lock.unlock();
  if (!waiting || given_back >= bytes_max) return given_back;
  MutexLock keepers(keepers_mu_);
  for (Keeper* const keeper : keepers_) {
    while (given_back < bytes_max && can_discard()) {
      const Discarded discarded = keeper->discard(bytes_max - given_back, UINT64_MAX);
      if (discarded.bytes == 0) break;
      given_back += discarded.given_back;
    }
  }
  return given_back;
}

// --- Keepers -------------------------------------------------------------------------------------

bool Discarder::can_discard() const {
  FileLock lock(state_);
  return may_discard();
}

void Discarder::add_keeper(Keeper& keeper) {
  MutexLock lock(keepers_mu_);
  keepers_.push_back(&keeper);
}

void Discarder::remove_keeper(Keeper& keeper) {
  MutexLock lock(keepers_mu_);
  std::erase(keepers_, &keeper);
}

Keeper* Discarder::oldest_keeper(uint64_t* order) const {
  Keeper* oldest = nullptr;
  for (Keeper* const keeper : keepers_) {
    const std::optional<uint64_t> next = keeper->next_order();
    if (!next || (oldest != nullptr && *next >= *order)) continue;
    oldest = keeper;
    *order = *next;
  }
  return oldest;
}

Status Discarder::begin_keep(FileRange range) {
  FileLock lock(state_);
  PGALLOC_RETURN_IF_ERROR(state_.check_open());
  return state_.pages.begin_keep(range);
}

Status Discarder::end_keep(FileRange range) {
  FileLock lock(state_);
  PGALLOC_RETURN_IF_ERROR(state_.check_open());
  return state_.pages.end_keep(range);
}

Discarded Discarder::discard_kept(std::span<const FileRange> ranges) {
  Batch batch;
  std::optional<Operation> operation;
  Discarded result;
  FileLock lock(state_);
  if (!may_discard()) return result;
  for (size_t next = 0; next < ranges.size();) {
    FileRange run = ranges[next++];
    if (!state_.pages.is_only_kept(run)) continue;
    // Neighbours go in one step.
    for (; next < ranges.size() && ranges[next].start == run.end; ++next) {
      if (!state_.pages.is_only_kept(ranges[next])) break;
      run.end = ranges[next].end;
    }
    (void)take_run_unchecked(run, batch);
  }
  if (batch.run_count == 0) return result;
  ++under_way_;
  for (size_t i = 0; i < batch.run_count; ++i) result.bytes += batch.runs[i].length();
  operation.emplace(state_);
  lock.unlock();
  result.given_back = punch(batch);
  lock.lock();
  settle(batch, /*mark=*/false);
  state_.stats.discards += batch.run_count;
  state_.stats.discarded_bytes += result.bytes;
  lock.unlock();
  return result;
}

void Discarder::before_fork() {
  keepers_mu_.lock_unranked();
  for (Keeper* const keeper : keepers_) keeper->before_fork();
}

void Discarder::after_fork_in_parent() {
  for (Keeper* const keeper : keepers_) keeper->after_fork_in_parent();
  keepers_mu_.unlock_unranked();
}

// --- Holding -------------------------------------------------------------------------------------

void Discarder::hold() {
  {
    FileLock lock(state_);
    ++held_;
    while (!discarding_.empty()) state_.wait(ended_);
  }
  const MutexLock no_keeper_is_being_asked(keepers_mu_);
}

void Discarder::resume() {
  FileLock lock(state_);
  --held_;
}

// --- Queues --------------------------------------------------------------------------------------

// Of the others, those stay that are still held.
void Discarder::add(std::shared_ptr<DiscardQueue> queue) {
  queues_.erase(std::remove_if(queues_.begin() + 1, queues_.end(),
                               [](const auto& old) { return old.use_count() == 1; }),
                queues_.end());
  queues_.push_back(std::move(queue));
}

std::shared_ptr<DiscardQueue> Discarder::find_paid_by(std::string_view payer) const {
  const auto found = std::find_if(queues_.begin() + 1, queues_.end(),
                                  [&](const auto& queue) { return queue->payer() == payer; });
  return found == queues_.end() ? nullptr : *found;
}

std::shared_ptr<DiscardQueue> Discarder::queue_paid_by(const std::string& payer) {
  FileLock lock(state_);
  if (auto found = find_paid_by(payer)) return found;
  auto queue = std::make_shared<DiscardQueue>(DiscardPolicy::kLru, payer);
  add(queue);
  return queue;
}

void Discarder::clear() {
  for (const auto& queue : queues_) queue->clear();
}

std::optional<std::string> Discarder::verify() const {
  if (discarding_.empty() != (under_way_ == 0)) return "pages are taken, and no batch is under way";
  std::optional<std::string> broken;
  const auto& usage = state_.pages.usage();
  discarding_.visit_range({0, kMaxOffset}, [&](FileRange taken, const auto&) {
    uint64_t owned = 0;
    usage.visit_range(taken, [&](FileRange part, const PageUse& use) {
      if (use.refs > 0) owned += part.length();
    });
    if (owned != taken.length()) broken = "pages are taken without a reference";
  });
  return broken;
}

}  // namespace pgalloc
