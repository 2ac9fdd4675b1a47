// Purpose: looks values up in the index of a cache, in any process that has it mapped, without a lock.
//
// Thread safety: any thread. A reader may be stopped or killed anywhere: the writer does not wait for it.
//
// Invariants
//   1. A value that hold() gives is the key's at some moment of the call, and stays what it is until let_go().
//   2. What copy() gives was the key's value, all of it, at some moment of the call.
//   3. A miss: at some moment of the call there was none. Only where the writer has died in the middle of a
//      change may one be missed that is there.
//   4. It ends: each round but the first of a lookup follows a change by the writer.
#pragma once

#include <atomic>
#include <optional>
#include <utility>

#include "cache/holds.h"
#include "cache/index_layout.h"

namespace pgalloc::cache {

template <class Memory>
class IndexReader {
 public:
  IndexReader(const Index<Memory>& index, Holds<Memory> holds)
      : index_(index), format_(index.entry_count), holds_(holds) {}

  // The value of a key with this hash, and a hit. is_key(fields) says whether it is the key's: it may change
  // meanwhile, and the answer is believed only if it has not.
  template <class IsKey>
  std::optional<Fields> hold(uint32_t hash, IsKey is_key) {
    std::optional<Fields> found;
    look_up(hash, [&](const Entry<Memory>& entry, uint64_t version, const Fields& fields) {
      if (!is_key(fields)) return unchanged(entry, version) ? Seen::kOther : Seen::kChanged;
      if (!holds_.add(fields.holder)) return Seen::kChanged;
      if (entry.version.load(std::memory_order_seq_cst) != version) {
        holds_.undo(fields.holder);
        return Seen::kChanged;
      }
      found = fields;
      return Seen::kFound;
    });
    return found;
  }
  void let_go(const Fields& fields) { holds_.remove(fields.holder); }

  // For those who go through all of them: what an entry says, and its version; nothing if it is not in use, or changes
  // just now.
  std::optional<Fields> look_at(uint64_t number, uint64_t* version) const {
    const Entry<Memory>& entry = index_.entries[number];
    *version = entry.version.load(std::memory_order_acquire);
    const Fields fields = entry.fields();
    if (!Entry<Memory>::in_use(*version) || !unchanged(entry, *version)) return std::nullopt;
    return fields;
  }
  // Whether it still is the same: then what was read of its key since is right.
  bool is_still(uint64_t number, uint64_t version) const {
    return unchanged(index_.entries[number], version);
  }

  // The same without a hold, for small values: copy_if_key(fields) copies the value, too. What it copied counts only
  // if this returns fields.
  template <class CopyIfKey>
  std::optional<Fields> copy(uint32_t hash, CopyIfKey copy_if_key) {
    std::optional<Fields> found;
    look_up(hash, [&](const Entry<Memory>& entry, uint64_t version, const Fields& fields) {
      const bool is_key = copy_if_key(fields);
      if (!unchanged(entry, version)) return Seen::kChanged;
      if (!is_key) return Seen::kOther;
      holds_.count_hit(fields.holder);
      found = fields;
      return Seen::kFound;
    });
    return found;
  }

 private:
  enum class Seen : uint8_t {
    kFound,
    kOther,    // another key's
    kChanged,  // by the writer, meanwhile
  };

  // Calls visit(entry, version, fields) for entries that may be the key's until one is.
  template <class Visit>
  void look_up(uint32_t hash, Visit visit) const {
    uint64_t word = index_.table->load(std::memory_order_acquire);
    while (!look_up_in(Table::of(word), hash, visit)) {
      // A table that was replaced knows nothing of what came later.
      const uint64_t newest = index_.table->load(std::memory_order_acquire);
      if (newest == word) return;
      word = newest;
    }
  }

  // Whether it was found.
  template <class Visit>
  bool look_up_in(Table table, uint32_t hash, Visit visit) const {
    if (!table.lies_within(index_.bucket_count)) return false;
    uint64_t at = table.home(hash);
    for (uint64_t i = 0; i < table.buckets(); ++i, at = table.after(at)) {
      const Bucket<Memory>& bucket = index_.buckets[table.first + at];
      for (const auto& slot : bucket.slots) {
        if (look_at(slot, hash, visit)) return true;
      }
      if (bucket.passed.load(std::memory_order_acquire) == 0) break;
    }
    return false;
  }

  // Whether the slot has it.
  template <class Visit>
  bool look_at(const typename Memory::template Atomic<uint32_t>& slot, uint32_t hash,
               Visit visit) const {
    uint32_t seen = slot.load(std::memory_order_acquire);
    while (format_.may_be(seen, hash) && format_.number(seen) < index_.entry_count) {
      const Entry<Memory>& entry = index_.entries[format_.number(seen)];
      const uint64_t version = entry.version.load(std::memory_order_acquire);
      if (Entry<Memory>::in_use(version)) {
        const Fields fields = entry.fields();
        if (fields.hash == hash) {
          const Seen result = visit(entry, version, fields);
          if (result != Seen::kChanged) return result == Seen::kFound;
        } else if (unchanged(entry, version)) {
          return false;
        }
      }
      // Without a change this is a slot of an old table, or one whose writer has died.
      const uint32_t before = std::exchange(seen, slot.load(std::memory_order_acquire));
      if (seen == before && entry.version.load(std::memory_order_acquire) == version) return false;
    }
    return false;
  }

  static bool unchanged(const Entry<Memory>& entry, uint64_t version) {
    Memory::fence(std::memory_order_acquire);
    return entry.version.load(std::memory_order_relaxed) == version;
  }

  const Index<Memory> index_;
  const SlotFormat format_;
  Holds<Memory> holds_;
};

}  // namespace pgalloc::cache
