// Purpose: which values have a tag: for each tag a list of entries of the index.
//
// Thread safety: externally synchronised (the cache's lock).
//
// Invariants
//   1. A tag is known as long as an entry has it, or it is claimed.
//   2. An entry with a tag is in its list, once. There is memory for lists only if there was a tag.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace pgalloc::cache {

class Tags {
 public:
  struct Tag {
    std::string name;
    uint64_t first = kNone;  // entry
    uint64_t size = 0;
    uint64_t claims = 0;  // by those who are about to give it to an entry
  };

  // The tag of this name, claimed until let_go(). From here on entries below `entries` can have it without memory.
  Tag& claim(std::string_view name, uint64_t entries) {
    if (links_.size() < entries) links_.resize(std::max<size_t>(entries, 2 * links_.size()));
    std::string its_name(name);
    const auto [place, is_new] = tags_.try_emplace(its_name);
    if (is_new) place->second.name = std::move(its_name);
    ++place->second.claims;
    return place->second;
  }
  Tag* find(std::string_view name) {
    const auto found = tags_.find(std::string(name));
    return found == tags_.end() ? nullptr : &found->second;
  }
  void let_go(Tag& tag) {
    --tag.claims;
    drop_if_unused(tag);
  }

  // REQUIRES: the entry has no tag, and claim() was told of it.
  void add(uint64_t entry, Tag& tag) {
    links_[entry] = {&tag, kNone, tag.first};
    if (tag.first != kNone) links_[tag.first].previous = entry;
    tag.first = entry;
    ++tag.size;
  }
  // Harmless if it has none. A tag without entries is forgotten.
  void remove(uint64_t entry) {
    if (entry >= links_.size() || links_[entry].tag == nullptr) return;
    const Link link = links_[entry];
    links_[entry] = {};
    (link.previous == kNone ? link.tag->first : links_[link.previous].next) = link.next;
    if (link.next != kNone) links_[link.next].previous = link.previous;
    --link.tag->size;
    drop_if_unused(*link.tag);
  }
  // nullptr if it has none.
  const Tag* of(uint64_t entry) const {
    return entry < links_.size() ? links_[entry].tag : nullptr;
  }
  size_t size() const { return tags_.size(); }
  // How many entries have a tag.
  uint64_t entries() const {
    uint64_t count = 0;
    for (const auto& [name, tag] : tags_) count += tag.size;
    return count;
  }

  static constexpr uint64_t kNone = UINT64_MAX;

 private:
  void drop_if_unused(Tag& tag) {
    if (tag.size == 0 && tag.claims == 0) tags_.erase(tags_.find(tag.name));
  }

  struct Link {
    Tag* tag = nullptr;
    uint64_t previous = kNone;
    uint64_t next = kNone;
  };

  std::unordered_map<std::string, Tag> tags_;  // its elements do not move
  std::vector<Link> links_;                    // by entry
};

}  // namespace pgalloc::cache
