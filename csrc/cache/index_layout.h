// Purpose: the index of a cache as it lies in memory that several processes map: one process writes it, all of
// them look values up in it without a lock and without a message.
//
//   table (one of several: it grows by being replaced)     entries
//   bucket: passed | slot slot slot slot slot slot slot    entry: version, hash, place, ...
//                             |                              ^
//                             +--- some of the hash, number -+
//
// A key belongs into the bucket that its hash says; where that is full, into the next that is not. `passed` counts
// the entries that went on to a later bucket. An entry stays in its slot until it is removed, or another value of the
// same key takes its place there.
//
// Thread safety: the fields are atomic. Who may do what: index_writer.h and index_reader.h.
//
// Invariants
//   1. An entry that a slot of the newest table refers to has an even version, and its fields do not change. It is taken
//      out of its slot before its version becomes odd.
//   2. Each use of an entry has a version of its own: it never comes back.
//   3. What a reader sees may be of any time, and, from a process that means harm, anything: each number is checked
//      before it is used.
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace pgalloc::cache {

// What a slot holds: the number of an entry, in as many bits as that takes, and above them as many of the hash as there
// is room for. Zero: nothing is here.
class SlotFormat {
 public:
  static constexpr uint32_t kNothing = 0;
  static constexpr uint64_t kEntriesMax = (uint64_t{1} << 28) - 1;  // leaves four bits of the hash

  // REQUIRES: entry_count <= kEntriesMax.
  explicit constexpr SlotFormat(uint64_t entry_count)
      : number_bits_(static_cast<uint32_t>(std::bit_width(entry_count))) {}

  constexpr uint32_t of(uint32_t hash, uint64_t number) const {
    return (hash & hash_mask()) | static_cast<uint32_t>(number + 1);
  }
  constexpr bool may_be(uint32_t slot, uint32_t hash) const {
    return slot != kNothing && ((slot ^ hash) & hash_mask()) == 0;
  }
  constexpr uint64_t number(uint32_t slot) const { return (slot & ~hash_mask()) - 1; }

 private:
  constexpr uint32_t hash_mask() const {
    return static_cast<uint32_t>(~uint64_t{0} << number_bits_);
  }

  uint32_t number_bits_;
};

// What an entry says of a value.
struct Fields {
  uint64_t place = 0;       // where the value begins in the file of values
  uint64_t length = 0;      // of the value, in bytes
  uint64_t expires_ns = 0;  // when it expires, by CLOCK_MONOTONIC; 0: never
  uint32_t hash = 0;        // of its key
  uint32_t key_place = 0;   // where its key begins: see KeyArena
  uint32_t key_length = 0;  // in bytes
  uint32_t holder = 0;      // the number of what is kept as one: the pages of the value, or a slab
};

template <class Memory>
struct Entry {
  template <class T>
  using Atomic = typename Memory::template Atomic<T>;

  Atomic<uint64_t> version{0};  // even and not 0: it is in use
  Atomic<uint64_t> place{0};
  Atomic<uint64_t> length{0};
  Atomic<uint64_t> expires_ns{0};
  Atomic<uint32_t> hash{0};
  Atomic<uint32_t> key_place{0};
  Atomic<uint32_t> key_length{0};
  Atomic<uint32_t> holder{0};

  static constexpr bool in_use(uint64_t version) { return version != 0 && version % 2 == 0; }
  // They may be of several versions: what is read counts only if the version is the same before and after.
  Fields fields() const {
    constexpr auto kRelaxed = std::memory_order_relaxed;
    return {.place = place.load(kRelaxed),
            .length = length.load(kRelaxed),
            .expires_ns = expires_ns.load(kRelaxed),
            .hash = hash.load(kRelaxed),
            .key_place = key_place.load(kRelaxed),
            .key_length = key_length.load(kRelaxed),
            .holder = holder.load(kRelaxed)};
  }
};

template <class Memory>
struct alignas(64) Bucket {
  static constexpr size_t kSlots = Memory::kSlotsOfBucket;

  typename Memory::template Atomic<uint32_t> passed{0};
  typename Memory::template Atomic<uint32_t> slots[kSlots]{};
};

// Buckets [first, first + 2^bits) of the index: a table, in one word that is published as a whole.
struct Table {
  uint64_t first = 0;
  uint32_t bits = 0;

  static constexpr uint64_t kFirstBits = 56;
  constexpr uint64_t word() const { return uint64_t{bits} << kFirstBits | first; }
  static constexpr Table of(uint64_t word) {
    return {word & ((uint64_t{1} << kFirstBits) - 1), static_cast<uint32_t>(word >> kFirstBits)};
  }
  constexpr uint64_t buckets() const { return uint64_t{1} << bits; }
  // The highest bits of a hash are in slots: the lowest say the bucket.
  constexpr uint64_t home(uint32_t hash) const { return hash & (buckets() - 1); }
  constexpr uint64_t after(uint64_t at) const { return (at + 1) & (buckets() - 1); }
  constexpr bool lies_within(uint64_t bucket_count) const {
    return bits < 32 && first <= bucket_count && buckets() <= bucket_count - first;
  }
};

// Where it all lies in this process.
template <class Memory>
struct Index {
  typename Memory::template Atomic<uint64_t>* table = nullptr;  // the newest Table
  Bucket<Memory>* buckets = nullptr;
  uint64_t bucket_count = 0;
  Entry<Memory>* entries = nullptr;
  uint64_t entry_count = 0;
};

}  // namespace pgalloc::cache
