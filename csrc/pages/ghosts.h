// Purpose: which keys left a queue not long ago. Approximate on purpose: a table of fixed size that
// remembers about as many keys as it was asked to, by fingerprint.
//
// Thread safety: externally synchronised (the file's lock).
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace pgalloc {

class Ghosts {
 public:
  // Keys that left more than `keys` departures ago are forgotten. Allocates, unlike the rest; a std::bad_alloc leaves
  // those that are remembered.
  void remember(size_t keys) {
    window_ = keys;
    const size_t sets = std::bit_ceil(std::max<size_t>(keys / kWays, 16));
    if (sets > sets_.size()) sets_ = std::vector<std::array<Ghost, kWays>>(sets);
  }
  void add(uint64_t key) {
    if (sets_.empty()) return;
    ++departures_;
    // Over the oldest of its set.
    auto& set = set_of(key);
    *std::min_element(set.begin(), set.end(), [&](const Ghost& a, const Ghost& b) {
      return departures_ - a.departure > departures_ - b.departure;
    }) = {fingerprint(key), departures_};
  }
  // Whether the key is remembered; it is not any more.
  bool take(uint64_t key) {
    if (sets_.empty()) return false;
    for (Ghost& ghost : set_of(key)) {
      if (ghost.departure == 0 || ghost.fingerprint != fingerprint(key)) continue;
      const bool recent = departures_ - ghost.departure < window_;
      ghost = {};
      return recent;
    }
    return false;
  }

 private:
  static constexpr size_t kWays = 8;
  struct Ghost {
    uint32_t fingerprint = 0;
    uint32_t departure = 0;  // 0: none
  };
  static uint64_t mixed(uint64_t key) {  // a hash of small numbers is not spread
    key *= 0x9E3779B97F4A7C15u;
    return key ^ (key >> 32);
  }
  static uint32_t fingerprint(uint64_t key) { return static_cast<uint32_t>(mixed(key) >> 32); }
  std::array<Ghost, kWays>& set_of(uint64_t key) { return sets_[mixed(key) & (sets_.size() - 1)]; }

  std::vector<std::array<Ghost, kWays>> sets_;
  size_t window_ = 0;
  uint32_t departures_ = 0;
};

}  // namespace pgalloc
