#include "cache/holders.h"

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "base/check.h"

namespace pgalloc::cache {

Holder* Holders::add(FileRange pages, uint32_t slot_bytes) {
  if (unused_.empty() && holders_.size() == count_max_) return nullptr;
  auto made = std::make_unique<Holder>();
  made->waiting.range = pages;
  made->slot_bytes = slot_bytes;
  if (slot_bytes > 0) classes_.try_emplace(slot_bytes);
  made->values.resize(made->slots());
  if (slot_bytes > 0) made->vacant.reserve(made->slots());
  if (unused_.empty()) {
    if (holders_.size() == holders_.capacity()) {
      const size_t more = std::max<size_t>(64, 2 * holders_.size());
      unused_.reserve(more);
      holders_.reserve(more);
    }
    holders_.push_back(nullptr);
    made->number = static_cast<uint32_t>(holders_.size() - 1);
  } else {
    made->number = unused_.back();
    unused_.pop_back();
  }
  made->waiting.id = made->waiting.hash = made->number;
  ++size_;
  bytes_ += pages.length();
  return (holders_[made->number] = std::move(made)).get();
}

std::unique_ptr<Holder> Holders::remove(Holder& holder) {
  PGALLOC_CHECK(holder.live == 0 && holder.waiting.list == nullptr);
  if (holder.is_slab()) {
    if (holder.open) {
      class_of(holder).open = nullptr;
    } else if (!holder.vacant.empty()) {
      unlink(holder);
    }
  }
  holder.open = false;
  holder.gone = true;
  --size_;
  bytes_ -= holder.pages().length();
  return std::move(holders_[holder.number]);
}

Holder* Holders::any() {
  if (size_ == 0) return nullptr;
  for (;; ++looked_) {
    if (looked_ >= holders_.size()) looked_ = 0;
    if (holders_[looked_] != nullptr) return holders_[looked_].get();
  }
}

const Holders::Class* Holders::find_class(uint32_t slot_bytes) const {
  const auto found = classes_.find(slot_bytes);
  return found == classes_.end() ? nullptr : &found->second;
}

Holder* Holders::open_slab(uint32_t slot_bytes) const {
  const Class* const its_class = find_class(slot_bytes);
  return its_class == nullptr ? nullptr : its_class->open;
}

Holder* Holders::any_open_slab() const {
  for (const auto& [slot_bytes, its_class] : classes_) {
    if (its_class.open != nullptr) return its_class.open;
  }
  return nullptr;
}

void Holders::open(Holder& slab) {
  Class& its_class = class_of(slab);
  PGALLOC_CHECK(its_class.open == nullptr && !slab.open);
  if (!slab.vacant.empty()) unlink(slab);
  slab.open = true;
  its_class.open = &slab;
}

void Holders::close(Holder& slab) {
  PGALLOC_CHECK(slab.open && slab.live > 0);
  class_of(slab).open = nullptr;
  slab.open = false;
  if (!slab.vacant.empty()) link(slab);
}

Holder* Holders::first_vacant(uint32_t slot_bytes) const {
  const Class* const its_class = find_class(slot_bytes);
  return its_class == nullptr ? nullptr : its_class->first_vacant;
}

void Holders::put_off(Holder& slab) {
  unlink(slab);
  link(slab);
}

void Holders::link(Holder& slab) {
  Class& its_class = class_of(slab);
  slab.previous_vacant = its_class.last_vacant;
  slab.next_vacant = nullptr;
  (slab.previous_vacant == nullptr ? its_class.first_vacant : slab.previous_vacant->next_vacant) =
      &slab;
  its_class.last_vacant = &slab;
}

void Holders::unlink(Holder& slab) {
  Class& its_class = class_of(slab);
  (slab.previous_vacant == nullptr ? its_class.first_vacant : slab.previous_vacant->next_vacant) =
      slab.next_vacant;
  (slab.next_vacant == nullptr ? its_class.last_vacant : slab.next_vacant->previous_vacant) =
      slab.previous_vacant;
  slab.previous_vacant = slab.next_vacant = nullptr;
}

std::optional<uint32_t> Holders::take_slot(Holder& holder, bool reuse) {
  if (holder.fresh < holder.slots()) return holder.fresh++;
  if (!reuse || holder.vacant.empty()) return std::nullopt;
  const uint32_t slot = holder.vacant.back();
  holder.vacant.pop_back();
  return slot;
}

void Holders::set(Holder& holder, uint32_t slot, uint64_t entry) {
  holder.values[slot] = static_cast<uint32_t>(entry + 1);
  ++holder.live;
}

void Holders::vacate(Holder& holder, uint32_t slot) {
  if (holder.values[slot] != 0) --holder.live;
  holder.values[slot] = 0;
  if (!holder.is_slab()) return;
  holder.vacant.push_back(slot);
  if (!holder.open && holder.vacant.size() == 1) link(holder);
}

std::optional<std::string> Holders::verify() const {
  std::unordered_set<const Holder*> known_vacant;
  for (const auto& [slot_bytes, its_class] : classes_) {
    for (const Holder* each = its_class.first_vacant; each != nullptr; each = each->next_vacant) {
      known_vacant.insert(each);
    }
  }
  size_t count = 0;
  uint64_t bytes = 0;
  std::vector<FileRange> ranges;
  for (size_t number = 0; number < holders_.size(); ++number) {
    if (holders_[number] == nullptr) continue;
    const Holder& holder = *holders_[number];
    const std::string its_name = "holder " + std::to_string(number);
    ++count;
    bytes += holder.pages().length();
    ranges.push_back(holder.pages());
    if (holder.number != number || holder.gone) return its_name + " is not what it is known as";
    const size_t used = holder.values.size() - static_cast<size_t>(std::count(
                                                   holder.values.begin(), holder.values.end(), 0u));
    if (used != holder.live) return its_name + " has another number of values than it says";
    if (!holder.is_slab()) {
      if (used != 1) return its_name + " has no value";
      continue;
    }
    if (holder.live + holder.vacant.size() != holder.fresh) {
      return its_name + " has slots that are taken twice, or lost";
    }
    std::unordered_set<uint32_t> vacant;
    for (const uint32_t slot : holder.vacant) {
      if (slot >= holder.fresh || holder.values[slot] != 0 || !vacant.insert(slot).second) {
        return its_name + " has a vacant slot that is used, or listed twice";
      }
    }
    if (holder.open != (open_slab(holder.slot_bytes) == &holder)) {
      return its_name + " is open, but not known as open, or the reverse";
    }
    if (!holder.open && holder.live == 0) return its_name + " is closed and empty";
    if (known_vacant.contains(&holder) != (!holder.open && !holder.vacant.empty())) {
      return its_name + " has vacant slots that are not known";
    }
  }
  if (count != size_ || bytes != bytes_) return "the holders are not those that were counted";
  std::sort(ranges.begin(), ranges.end(),
            [](const FileRange& a, const FileRange& b) { return a.start < b.start; });
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].start < ranges[i - 1].end) return "two holders have the same page";
  }
  return std::nullopt;
}

}  // namespace pgalloc::cache
