// Purpose: the hash of a key: SipHash-1-3 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012) under a
// secret of each cache, so that those who choose keys cannot choose their buckets.
//
// Thread safety: values only.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace pgalloc::cache {

struct HashSecret {
  uint64_t first = 0;
  uint64_t second = 0;
};

namespace internal {
struct SipState {
  uint64_t v0, v1, v2, v3;

  void round() {
    v0 += v1, v1 = std::rotl(v1, 13), v1 ^= v0, v0 = std::rotl(v0, 32);
    v2 += v3, v3 = std::rotl(v3, 16), v3 ^= v2;
    v0 += v3, v3 = std::rotl(v3, 21), v3 ^= v0;
    v2 += v1, v1 = std::rotl(v1, 17), v1 ^= v2, v2 = std::rotl(v2, 32);
  }
  void add(uint64_t word) {
    v3 ^= word;
    round();
    v0 ^= word;
  }
};
}  // namespace internal

inline uint64_t hash_of(std::string_view key, const HashSecret& secret) {
  static_assert(std::endian::native == std::endian::little);
  internal::SipState state{.v0 = secret.first ^ 0x736f6d6570736575,
                           .v1 = secret.second ^ 0x646f72616e646f6d,
                           .v2 = secret.first ^ 0x6c7967656e657261,
                           .v3 = secret.second ^ 0x7465646279746573};
  const char* at = key.data();
  size_t left = key.size();
  for (; left >= 8; at += 8, left -= 8) {
    uint64_t word = 0;
    std::memcpy(&word, at, 8);
    state.add(word);
  }
  uint64_t last = uint64_t{key.size()} << 56;
  for (size_t i = 0; i < left; ++i) last |= uint64_t{static_cast<uint8_t>(at[i])} << (8 * i);
  state.add(last);
  state.v2 ^= 0xff;
  for (int i = 0; i < 3; ++i) state.round();
  return state.v0 ^ state.v1 ^ state.v2 ^ state.v3;
}

}  // namespace pgalloc::cache
