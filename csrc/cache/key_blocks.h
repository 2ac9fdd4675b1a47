// Purpose: which words of the memory of keys are free. It comes in chunks: short keys of about one length share a chunk, a
// long one has a run of them. A chunk without keys serves any length again, so what was freed is never lost for others.
//
// Thread safety: externally synchronised (the cache's lock).
//
// Invariants
//   1. Chunks from used_ on were never used, or are free; no free run ends there.
//   2. Two free runs are never neighbours. A free run is in the list of its size; its first and its last chunk say how long
//      it is.
//   3. A chunk of short keys with a free block is in the list of its class, and has a key at least.
//   4. A free block begins with the number of the next one in its chunk, and 1 more; 0: there is none.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace pgalloc::cache {

class KeyBlocks {
 public:
  using Word = std::atomic<uint64_t>;
  static constexpr uint64_t kChunkWords = 512;

  KeyBlocks() = default;
  KeyBlocks(Word* words, uint64_t word_count)
      : words_(words), chunk_count_(static_cast<uint32_t>(word_count / kChunkWords)) {}

  // What so many words take.
  static uint64_t taken_for(uint64_t words);
  // Where so many are; nothing if there is no room. May throw std::bad_alloc, without effect.
  std::optional<uint64_t> take(uint64_t words);
  // REQUIRES: take(words) gave it.
  void give_back(uint64_t place, uint64_t words) noexcept;

  // The chunks that are used now.
  uint64_t chunks_in_use() const { return in_use_; }
  // How many words of memory that was never used so many keys of this length would take.
  uint64_t words_to_come(uint64_t words, uint64_t count) const;
  std::optional<std::string> verify() const;

 private:
  static constexpr uint64_t kShortMax = 256;
  static constexpr uint32_t kNone = UINT32_MAX;
  static constexpr uint8_t kFree = 255;
  static constexpr uint8_t kRun = 254;     // the first of a long key's
  static constexpr uint8_t kRunEnd = 253;  // its last
  static constexpr size_t kClasses = 28;

  struct Chunk {
    uint32_t next = kNone;  // in the list of its class, or of free runs
    uint32_t previous = kNone;
    uint32_t run = 0;    // of a free run, or a long key's: how many chunks
    uint16_t live = 0;   // blocks with a key
    uint16_t fresh = 0;  // blocks that were ever used
    uint16_t freed = 0;  // 1 + the first free one of these
    uint8_t its_class = kFree;
  };

  static uint32_t class_of(uint64_t words);
  static uint64_t size_of(uint32_t its_class);
  static uint32_t capacity_of(uint32_t its_class) {
    return static_cast<uint32_t>(kChunkWords / size_of(its_class));
  }
  static size_t bin_of(uint32_t run);
  void link(uint32_t& first, uint32_t chunk);
  void unlink(uint32_t& first, uint32_t chunk);
  std::optional<uint32_t> take_run(uint32_t count);
  void free_run(uint32_t first, uint32_t count) noexcept;

  Word* words_ = nullptr;
  uint32_t chunk_count_ = 0;
  uint32_t used_ = 0;
  uint32_t touched_ = 0;  // the most that used_ ever was
  uint64_t in_use_ = 0;
  std::vector<Chunk> chunks_;
  std::array<uint32_t, kClasses> classes_ = all_none<kClasses>();
  std::array<uint64_t, kClasses> free_blocks_{};  // in chunks of a class
  std::array<uint32_t, 32> bins_ = all_none<32>();

  template <size_t kSize>
  static constexpr std::array<uint32_t, kSize> all_none() {
    std::array<uint32_t, kSize> all{};
    all.fill(kNone);
    return all;
  }
};

}  // namespace pgalloc::cache
