// Purpose: the bytes of keys, beside the index that they belong to. What is freed is used again; nothing goes back to the
// kernel, which keeps all pages of such a file.
//
// Thread safety: externally synchronised (the cache's lock), but for is() and copy(): any thread of any process, at any time.
//
// Invariant: a key lies in whole words, the rest of the last one being zero. Words are written and read as such, so that a
// key that is looked at while it changes is some mixture, and no race.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

#include "cache/key_blocks.h"

namespace pgalloc::cache {

class KeyArena {
 public:
  using Word = KeyBlocks::Word;
  static constexpr uint64_t kWord = sizeof(Word);
  static constexpr uint64_t kBytesMax = (uint64_t{1} << 32) * kWord;

  KeyArena() = default;
  // REQUIRES: all of it is zero, and `word_count` is at most kBytesMax / kWord.
  KeyArena(Word* words, uint64_t word_count)
      : words_(words), word_count_(word_count), blocks_(words, word_count) {}

  // What keys of this length take.
  static uint64_t bytes_for(uint64_t length) {
    return KeyBlocks::taken_for(words_for(length)) * kWord;
  }

  // Where the key is from here on; nothing if there is no room. May throw std::bad_alloc, without effect.
  std::optional<uint32_t> add(std::string_view key) {
    const auto place = blocks_.take(words_for(key.size()));
    if (!place) return std::nullopt;
    for (uint64_t i = 0; i * kWord < key.size(); ++i) {
      words_[*place + i].store(word_of(key, i), std::memory_order_relaxed);
    }
    return static_cast<uint32_t>(*place);
  }
  void remove(uint32_t place, uint64_t length) { blocks_.give_back(place, words_for(length)); }
  const KeyBlocks& blocks() const { return blocks_; }
  // How much memory that was never used so many keys of this length would take.
  uint64_t bytes_to_come(uint64_t length, uint64_t count) const {
    return blocks_.words_to_come(words_for(length), count) * kWord;
  }
  // Whether this key is there.
  bool is(uint32_t place, uint64_t length, std::string_view key) const {
    if (length != key.size() || place > word_count_ ||
        (length + kWord - 1) / kWord > word_count_ - place) {
      return false;
    }
    for (uint64_t i = 0; i * kWord < length; ++i) {
      if (words_[place + i].load(std::memory_order_relaxed) != word_of(key, i)) return false;
    }
    return true;
  }
  // Whether two keys that are here are the same.
  bool is_same(uint32_t place, uint64_t length, uint32_t other, uint64_t other_length) const {
    if (length != other_length) return false;
    for (uint64_t i = 0; i * kWord < length; ++i) {
      if (words_[place + i].load(std::memory_order_relaxed) !=
          words_[other + i].load(std::memory_order_relaxed)) {
        return false;
      }
    }
    return true;
  }
  // The same where a reader was told so, which may be wrong.
  std::optional<std::string> copy(uint32_t place, uint64_t length) const {
    if (place > word_count_ || (length + kWord - 1) / kWord > word_count_ - place)
      return std::nullopt;
    return at(place, length);
  }
  std::string at(uint32_t place, uint64_t length) const {
    std::string key(length, '\0');
    for (uint64_t i = 0; i * kWord < length; ++i) {
      const uint64_t word = words_[place + i].load(std::memory_order_relaxed);
      std::memcpy(key.data() + i * kWord, &word, std::min(kWord, length - i * kWord));
    }
    return key;
  }

 private:
  static uint64_t words_for(uint64_t length) {
    return std::max<uint64_t>((length + kWord - 1) / kWord, 1);
  }
  static uint64_t word_of(std::string_view key, uint64_t number) {
    uint64_t word = 0;
    const uint64_t left = key.size() - number * kWord;
    if (left >= kWord) {
      std::memcpy(&word, key.data() + number * kWord, kWord);
    } else {
      std::memcpy(&word, key.data() + number * kWord, left);
    }
    return word;
  }

  Word* words_ = nullptr;
  uint64_t word_count_ = 0;
  KeyBlocks blocks_;  // of the process that writes
};

}  // namespace pgalloc::cache
