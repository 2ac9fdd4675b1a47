#include "base/crc32c.h"

#include <array>
#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

// `state` below is the register of the algorithm: the complement of a checksum.
namespace pgalloc {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78;  // reflected

using Table = std::array<uint32_t, 256>;

// Entry [k][b]: what the byte b makes of the state when k bytes of zeros follow it.
consteval std::array<Table, 8> make_byte_tables() {
  std::array<Table, 8> tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t state = byte;
    for (int bit = 0; bit < 8; ++bit) state = state >> 1 ^ ((state & 1) != 0 ? kPolynomial : 0);
    tables[0][byte] = state;
  }
  for (size_t k = 1; k < tables.size(); ++k) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t shorter = tables[k - 1][byte];
      tables[k][byte] = shorter >> 8 ^ tables[0][shorter & 0xFF];
    }
  }
  return tables;
}
constexpr std::array<Table, 8> kByteTables = make_byte_tables();

uint64_t load64(const unsigned char* from) {
  uint64_t value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

uint32_t update_portable(uint32_t state, const unsigned char* data, size_t size) {
  static_assert(std::endian::native == std::endian::little);
  for (; size >= 8; data += 8, size -= 8) {
    const uint64_t word = load64(data) ^ state;
    state = 0;
    for (size_t i = 0; i < 8; ++i) state ^= kByteTables[7 - i][word >> (8 * i) & 0xFF];
  }
  for (; size > 0; ++data, --size) state = state >> 8 ^ kByteTables[0][(state ^ *data) & 0xFF];
  return state;
}

#if defined(__x86_64__) || defined(__ARM_FEATURE_CRC32)

// The instruction takes three cycles and can be started in every one, so three lanes of data keep
// it busy. The lanes of a block follow each other; kLaneSize is long enough to make joining them
// cheap, and three times that is still less than a small page.
constexpr size_t kLaneSize = 1024;

// Entry [k][b]: what a state with the byte b at place k becomes after kLaneSize bytes of zeros. A
// state is the sum of its bits, and so is what becomes of it.
consteval std::array<Table, 4> make_lane_tables() {
  std::array<Table, 4> tables{};
  for (size_t k = 0; k < tables.size(); ++k) {
    for (uint32_t byte = 1; byte < 256; ++byte) {
      if (!std::has_single_bit(byte)) {
        tables[k][byte] = tables[k][byte & (byte - 1)] ^ tables[k][byte & -byte];
        continue;
      }
      uint32_t state = byte << (8 * k);
      for (size_t i = 0; i < kLaneSize; ++i) state = state >> 8 ^ kByteTables[0][state & 0xFF];
      tables[k][byte] = state;
    }
  }
  return tables;
}
constexpr std::array<Table, 4> kLaneTables = make_lane_tables();

uint32_t after_lane_of_zeros(uint32_t state) {
  return kLaneTables[0][state & 0xFF] ^ kLaneTables[1][state >> 8 & 0xFF] ^
         kLaneTables[2][state >> 16 & 0xFF] ^ kLaneTables[3][state >> 24];
}

#if defined(__x86_64__)
#define PGALLOC_CRC_TARGET __attribute__((target("sse4.2")))
using Register = uint64_t;  // the instruction's operand: the state, extended
PGALLOC_CRC_TARGET Register step8(Register state, unsigned char byte) {
  return _mm_crc32_u8(static_cast<uint32_t>(state), byte);
}
PGALLOC_CRC_TARGET Register step64(Register state, uint64_t word) {
  return _mm_crc32_u64(state, word);
}
#else
#define PGALLOC_CRC_TARGET
using Register = uint32_t;
Register step8(Register state, unsigned char byte) { return __crc32cb(state, byte); }
Register step64(Register state, uint64_t word) { return __crc32cd(state, word); }
#endif

PGALLOC_CRC_TARGET uint32_t update_block(uint32_t state, const unsigned char* block) {
  Register lane0 = state;
  Register lane1 = 0;
  Register lane2 = 0;
  for (size_t i = 0; i < kLaneSize; i += 8) {
    lane0 = step64(lane0, load64(block + i));
    lane1 = step64(lane1, load64(block + kLaneSize + i));
    lane2 = step64(lane2, load64(block + 2 * kLaneSize + i));
  }
  const uint32_t joined =
      after_lane_of_zeros(static_cast<uint32_t>(lane0)) ^ static_cast<uint32_t>(lane1);
  return after_lane_of_zeros(joined) ^ static_cast<uint32_t>(lane2);
}

PGALLOC_CRC_TARGET uint32_t update_with_instruction(uint32_t state, const unsigned char* data,
                                                    size_t size) {
  constexpr size_t kBlockSize = 3 * kLaneSize;
  for (; size >= kBlockSize; data += kBlockSize, size -= kBlockSize) {
    state = update_block(state, data);
  }
  Register rest = state;
  for (; size >= 8; data += 8, size -= 8) rest = step64(rest, load64(data));
  for (; size > 0; ++data, --size) rest = step8(rest, *data);
  return static_cast<uint32_t>(rest);
}

#endif

using Update = uint32_t (*)(uint32_t state, const unsigned char* data, size_t size);

Update best_update() {
#if defined(__x86_64__)
  __builtin_cpu_init();  // we may be called before the constructor that does it
  return __builtin_cpu_supports("sse4.2") != 0 ? update_with_instruction : update_portable;
#elif defined(__ARM_FEATURE_CRC32)
  return update_with_instruction;
#else
  return update_portable;
#endif
}

}  // namespace

uint32_t crc32c(const void* data, size_t size, uint32_t crc) {
  static const Update update = best_update();
  return ~update(~crc, static_cast<const unsigned char*>(data), size);
}

namespace testing {
uint32_t crc32c_portable(const void* data, size_t size, uint32_t crc) {
  return ~update_portable(~crc, static_cast<const unsigned char*>(data), size);
}
}  // namespace testing

}  // namespace pgalloc
