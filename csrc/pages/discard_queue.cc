#include "pages/discard_queue.h"

#include <algorithm>
#include <atomic>
#include <new>

namespace pgalloc {
namespace {

constexpr uint8_t kVisitsMax = 3;     // what two bits hold, as in the paper
constexpr uint64_t kSmallShare = 10;  // the small queue gets one in so many bytes

std::atomic<uint64_t> unpins{0};

}  // namespace

std::optional<uint64_t> DiscardQueue::front_order() const {
  if (stuck_) return std::nullopt;
  if (hand_ != nullptr) return hand_->order;
  if (!small_.empty()) return small_.first()->order;
  if (!main_.empty()) return main_.first()->order;
  return std::nullopt;
}

void DiscardQueue::unpinned(Discardable& entry) {
  if (policy_ == DiscardPolicy::kS3Fifo) {
    try {
      ghosts_.remember(size() + 1);
    } catch (const std::bad_alloc&) {  // NOLINT: as many as before
    }
  }
  entry.order = unpins.fetch_add(1, std::memory_order_relaxed);
  entry.held = false;
  stuck_ = false;
  if (entry.list == nullptr) insert(entry);
}

void DiscardQueue::insert(Discardable& entry) {
  entry.visits = 0;
  const bool returns = policy_ == DiscardPolicy::kS3Fifo && ghosts_.take(entry.hash);
  (policy_ == DiscardPolicy::kS3Fifo && !returns ? small_ : main_).push_back(entry);
}

void DiscardQueue::pinned(Discardable& entry) {
  if (policy_ == DiscardPolicy::kLru) unlink(entry);
  if (entry.list == nullptr) return;
  entry.held = true;
  entry.visits = std::min<uint8_t>(entry.visits + 1, kVisitsMax);
}

void DiscardQueue::remove(Discardable& entry) {
  unlink(entry);
  entry.held = false;
}

void DiscardQueue::unlink(Discardable& entry) {
  if (hand_ == &entry) hand_ = entry.next;
  if (entry.list != nullptr) entry.list->remove(entry);
}

void DiscardQueue::move_back(DiscardList& to, Discardable& entry) {
  unlink(entry);
  to.push_back(entry);
}

// --- What goes -----------------------------------------------------------------------------------

Discardable* DiscardQueue::take_victim() {
  Discardable* victim = nullptr;
  switch (policy_) {
    case DiscardPolicy::kLru:
      victim = take_lru();
      break;
    case DiscardPolicy::kSieve:
      victim = take_by_sieve();
      break;
    case DiscardPolicy::kS3Fifo:
      victim = take_by_s3_fifo();
      break;
  }
  stuck_ = victim == nullptr;
  if (victim != nullptr) unlink(*victim);
  return victim;
}

Discardable* DiscardQueue::take_lru() { return main_.first(); }

Discardable* DiscardQueue::take_by_sieve() {
  // The first round clears every visit, so the second one finds an entry, unless all are held.
  for (size_t steps = 2 * main_.size(); steps > 0; --steps) {
    if (hand_ == nullptr) hand_ = main_.first();
    Discardable* const entry = hand_;
    if (entry->visits == 0 && !entry->held) return entry;
    entry->visits = 0;
    hand_ = entry->next;
  }
  return nullptr;
}

Discardable* DiscardQueue::take_by_s3_fifo() {
  std::optional<bool> free_in_main;
  const auto main_can_go = [&] {
    if (!free_in_main) free_in_main = main_.has_free();
    return *free_in_main;
  };
  // No entry is passed over more often than it has visits, and once more for leaving the small queue.
  for (size_t steps = (kVisitsMax + 2) * size(); steps > 0; --steps) {
    const bool from_small =
        main_.empty() ||
        (!small_.empty() &&
         (small_.bytes() >= (small_.bytes() + main_.bytes()) / kSmallShare || !main_can_go()));
    if (from_small) {
      Discardable* const entry = small_.first();
      if (entry->visits > 1 || entry->held) {
        entry->visits = 0;
        move_back(main_, *entry);
        if (!entry->held) free_in_main = true;
      } else {
        ghosts_.add(entry->hash);
        return entry;
      }
    } else {
      Discardable* const entry = main_.first();
      if (entry->visits == 0 && !entry->held) return entry;
      if (entry->visits > 0) --entry->visits;
      move_back(main_, *entry);
    }
  }
  return nullptr;
}

Discardable* DiscardQueue::take_victim_or_held() {
  Discardable* victim = take_victim();
  if (victim == nullptr) victim = small_.empty() ? main_.first() : small_.first();
  if (victim != nullptr) unlink(*victim);
  return victim;
}

void DiscardQueue::refuse(Discardable& entry) { main_.push_back(entry); }

void DiscardQueue::clear() {
  hand_ = nullptr;
  small_.clear();
  main_.clear();
}

}  // namespace pgalloc
