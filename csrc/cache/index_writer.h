// Purpose: changes the index of a cache. There is one, in the process that owns it.
//
// Thread safety: externally synchronised (the cache's lock); readers of any process go on meanwhile.
//
// Invariants
//   1. A process may be killed between any two stores: the readers of others find each key's old value, its new
//      one, or none, and never another's.
//   2. Pages of a value that is gone are used again only once no count says that they are held: may_reuse().
#pragma once

#include <atomic>
#include <optional>
#include <vector>

#include "base/check.h"
#include "cache/holds.h"
#include "cache/index_layout.h"

namespace pgalloc::cache {

template <class Memory>
class IndexWriter {
 public:
  // REQUIRES: all of `index` is zero.
  IndexWriter(const Index<Memory>& index, uint32_t table_bits)
      : index_(index), format_(index.entry_count) {
    PGALLOC_CHECK(uint64_t{1} << table_bits <= index.bucket_count);
    publish({.first = 0, .bits = table_bits});
  }
  IndexWriter(const IndexWriter&) = delete;
  IndexWriter& operator=(const IndexWriter&) = delete;

  uint64_t size() const { return size_; }
  // Entries that were ever used: those from here on are not.
  uint64_t entries_used() const { return used_; }
  uint64_t version(uint64_t number) const { return get(index_.entries[number].version); }
  bool in_use(uint64_t number) const {
    return Entry<Memory>::in_use(get(index_.entries[number].version));
  }
  // Whether add() and replace() find room so often. If not, it may help to grow().
  bool has_room(uint64_t times = 1) const {
    const uint64_t room = table_.buckets() * Bucket<Memory>::kSlots;
    return size_ + times <= room - room / 8 && size_ + times <= index_.entry_count;
  }
  Fields fields(uint64_t number) const { return index_.entries[number].fields(); }

  // The entry of a key with this hash. is_key(fields) says whether it is the key's.
  template <class IsKey>
  std::optional<uint64_t> find(uint32_t hash, IsKey is_key) const {
    std::optional<uint64_t> found;
    visit_slots(hash, [&](Bucket<Memory>&, Slot& slot) {
      const uint32_t word = get(slot);
      if (!format_.may_be(word, hash)) return false;
      const Fields its = fields(format_.number(word));
      if (its.hash != hash || !is_key(its)) return false;
      found = format_.number(word);
      return true;
    });
    return found;
  }

  // A value of a key that has none. Its number; nothing if there is no room for it: see grow().
  std::optional<uint64_t> add(const Fields& fields) {
    if (!has_room()) return std::nullopt;
    const auto number = fill(fields);
    if (!number) return std::nullopt;
    insert(*number, fields.hash);
    ++size_;
    return number;
  }
  // Another value of the same key. Its number; nothing if there is no entry for it. The old value is gone.
  std::optional<uint64_t> replace(uint64_t number, const Fields& fields) {
    const auto successor = fill(fields);
    if (!successor) return std::nullopt;
    find_slot(number, [&](Bucket<Memory>&, Slot& slot) {
      slot.store(format_.of(fields.hash, *successor), std::memory_order_release);
    });
    kill(number);
    return successor;
  }
  void remove(uint64_t number) {
    const uint32_t hash = get(index_.entries[number].hash);
    Bucket<Memory>* its_bucket = nullptr;
    find_slot(number, [&](Bucket<Memory>& bucket, Slot& slot) {
      slot.store(SlotFormat::kNothing, std::memory_order_release);
      its_bucket = &bucket;
    });
    for (uint64_t at = table_.home(hash); &bucket_at(at) != its_bucket; at = table_.after(at)) {
      auto& passed = bucket_at(at).passed;
      passed.store(get(passed) - 1, std::memory_order_release);
    }
    kill(number);
    --size_;
  }

  // A table of twice the size takes over. False if there is no room for it.
  bool grow() {
    const Table old = table_;
    const Table next{.first = old.first + old.buckets(), .bits = old.bits + 1};
    if (next.first + next.buckets() > index_.bucket_count) return false;
    table_ = next;
    for (uint64_t i = 0; i < old.buckets(); ++i) {
      for (const auto& slot : index_.buckets[old.first + i].slots) {
        const uint32_t word = get(slot);
        if (word == SlotFormat::kNothing) continue;
        insert(format_.number(word), get(index_.entries[format_.number(word)].hash));
      }
    }
    publish(next);
    return true;
  }

  // The processes that read, this one included.
  std::vector<Holds<Memory>>& readers() { return readers_; }
  // Whether no process holds it. REQUIRES: all entries with this holder are gone.
  bool may_reuse(uint32_t holder) const {
    for (const Holds<Memory>& reader : readers_) {
      if (reader.any(holder)) return false;
    }
    // What is written there comes after the odd versions, for those who copy.
    Memory::fence(std::memory_order_seq_cst);
    return true;
  }

 private:
  using Slot = typename Memory::template Atomic<uint32_t>;

  // Nothing else writes it.
  template <class Atomic>
  static auto get(const Atomic& value) {
    return value.load(std::memory_order_relaxed);
  }
  Bucket<Memory>& bucket_at(uint64_t at) const { return index_.buckets[table_.first + at]; }

  // Calls visit(bucket, slot) for slots where the key may be, until it says true.
  template <class Visit>
  void visit_slots(uint32_t hash, Visit visit) const {
    uint64_t at = table_.home(hash);
    for (uint64_t i = 0; i < table_.buckets(); ++i, at = table_.after(at)) {
      Bucket<Memory>& bucket = bucket_at(at);
      for (Slot& slot : bucket.slots) {
        if (visit(bucket, slot)) return;
      }
      if (get(bucket.passed) == 0) return;
    }
  }
  template <class Visit>
  void find_slot(uint64_t number, Visit visit) const {
    const uint32_t hash = get(index_.entries[number].hash);
    const uint32_t word = format_.of(hash, number);
    bool found = false;
    visit_slots(hash, [&](Bucket<Memory>& bucket, Slot& slot) {
      if (get(slot) != word) return false;
      visit(bucket, slot);
      return found = true;
    });
    PGALLOC_CHECK(found);
  }

  // An entry with these fields that no slot refers to.
  std::optional<uint64_t> fill(const Fields& fields) {
    const uint64_t number = free_ > 0 ? free_ - 1 : used_;
    if (number >= index_.entry_count) return std::nullopt;
    Entry<Memory>& entry = index_.entries[number];
    if (free_ > 0) {
      free_ = get(entry.place);
    } else {
      ++used_;
    }
    constexpr auto kRelaxed = std::memory_order_relaxed;
    entry.place.store(fields.place, kRelaxed);
    entry.length.store(fields.length, kRelaxed);
    entry.expires_ns.store(fields.expires_ns, kRelaxed);
    entry.hash.store(fields.hash, kRelaxed);
    entry.key_place.store(fields.key_place, kRelaxed);
    entry.key_length.store(fields.key_length, kRelaxed);
    entry.holder.store(fields.holder, kRelaxed);
    const uint64_t version = get(entry.version);
    entry.version.store(version + (version % 2 == 0 ? 2 : 1), std::memory_order_release);
    return number;
  }
  void insert(uint64_t number, uint32_t hash) {
    for (uint64_t at = table_.home(hash);; at = table_.after(at)) {
      Bucket<Memory>& bucket = bucket_at(at);
      for (Slot& slot : bucket.slots) {
        if (get(slot) != SlotFormat::kNothing) continue;
        slot.store(format_.of(hash, number), std::memory_order_release);
        return;
      }
      bucket.passed.store(get(bucket.passed) + 1, std::memory_order_release);
    }
  }
  // No slot refers to it any more. From here on it is not held anew.
  void kill(uint64_t number) {
    Entry<Memory>& entry = index_.entries[number];
    entry.version.store(get(entry.version) + 1, std::memory_order_seq_cst);
    // For those who copy: what is written to the entry, and to its pages, comes later.
    Memory::fence(std::memory_order_release);
    entry.place.store(free_, std::memory_order_relaxed);
    free_ = number + 1;
  }
  void publish(Table table) {
    table_ = table;
    index_.table->store(table.word(), std::memory_order_release);
  }

  const Index<Memory> index_;
  const SlotFormat format_;
  Table table_;
  uint64_t size_ = 0;
  uint64_t used_ = 0;  // entries that were ever used
  uint64_t free_ = 0;  // 1 + the first of those that are not: each has the next in `place`
  std::vector<Holds<Memory>> readers_;
};

}  // namespace pgalloc::cache
