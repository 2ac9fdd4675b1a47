// Purpose: the bytes of keys, beside the index that they belong to. What is freed is used again for keys of about that
// size; nothing goes back to the kernel, which keeps all pages of such a file.
//
// Thread safety: externally synchronised (the cache's lock), but for is(): any thread of any process, at any time.
//
// Invariants
//   1. A key lies in whole words, the rest of the last one being zero. Words are written and read as such, so that a key
//      that is looked at while it changes is some mixture, and no race.
//   2. A freed block begins with the place of the next one of its class.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

namespace pgalloc::cache {

class KeyArena {
 public:
  using Word = std::atomic<uint64_t>;
  static constexpr uint64_t kWord = sizeof(Word);
  static constexpr uint64_t kBytesMax = (uint64_t{1} << 32) * kWord;

  KeyArena() = default;
  // REQUIRES: all of it is zero, and `word_count` is at most kBytesMax / kWord.
  KeyArena(Word* words, uint64_t word_count) : words_(words), word_count_(word_count) {}

  // What keys of this length take.
  static uint64_t bytes_for(uint64_t length) { return size_of(class_of(length)) * kWord; }

  // Where the key is from here on; nothing if there is no room.
  std::optional<uint32_t> add(std::string_view key) {
    const uint32_t its_class = class_of(key.size());
    uint32_t& freed = freed_[its_class];  // 1 + its place
    uint64_t place = used_;
    if (freed != 0) {
      place = freed - 1;
      freed = static_cast<uint32_t>(words_[place].load(std::memory_order_relaxed));
    } else if (size_of(its_class) > word_count_ - used_) {
      return std::nullopt;
    } else {
      used_ += size_of(its_class);
    }
    for (uint64_t i = 0; i * kWord < key.size(); ++i) {
      words_[place + i].store(word_of(key, i), std::memory_order_relaxed);
    }
    return static_cast<uint32_t>(place);
  }
  void remove(uint32_t place, uint64_t length) {
    uint32_t& freed = freed_[class_of(length)];
    words_[place].store(freed, std::memory_order_relaxed);
    freed = place + 1;
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
  std::string at(uint32_t place, uint64_t length) const {
    std::string key(length, '\0');
    for (uint64_t i = 0; i * kWord < length; ++i) {
      const uint64_t word = words_[place + i].load(std::memory_order_relaxed);
      std::memcpy(key.data() + i * kWord, &word, std::min(kWord, length - i * kWord));
    }
    return key;
  }

 private:
  // Of eight words and less each size is a class, above that four for each power of two.
  static uint32_t class_of(uint64_t length) {
    const uint64_t words = std::max<uint64_t>((length + kWord - 1) / kWord, 1);
    if (words <= 8) return static_cast<uint32_t>(words - 1);
    const auto power = static_cast<uint32_t>(std::bit_width(words - 1)) - 1;
    const uint64_t quarter = uint64_t{1} << (power - 2);
    const auto step = static_cast<uint32_t>((words - 1 - (uint64_t{1} << power)) / quarter);
    return 8 + 4 * (power - 3) + step;
  }
  static uint64_t size_of(uint32_t its_class) {
    if (its_class < 8) return its_class + 1;
    const uint32_t power = (its_class - 8) / 4 + 3;
    return (uint64_t{1} << power) + (uint64_t{1} << (power - 2)) * ((its_class - 8) % 4 + 1);
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

  static constexpr size_t kClasses = 8 + 4 * 32;

  Word* words_ = nullptr;
  uint64_t word_count_ = 0;
  uint64_t used_ = 0;
  std::array<uint32_t, kClasses> freed_{};
};

}  // namespace pgalloc::cache
