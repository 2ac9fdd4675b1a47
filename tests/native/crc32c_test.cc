#include "base/crc32c.h"

#include <string>

#include "native/support.h"

namespace pgalloc::crc32c_test {
namespace {

using native_tests::Random;

uint32_t both(const std::string& bytes, uint32_t crc = 0) {
  const uint32_t portable = testing::crc32c_portable(bytes.data(), bytes.size(), crc);
  EXPECT_EQ(crc32c(bytes.data(), bytes.size(), crc), portable);
  return portable;
}

TEST(known_values) {
  EXPECT_EQ(both("123456789"), 0xE3069283u);  // the check value of CRC-32C
  // RFC 3720, appendix B.4.
  EXPECT_EQ(both(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(both(std::string(32, '\xFF')), 0x62A8AB43u);
  std::string ascending(32, '\0');
  for (int i = 0; i < 32; ++i) ascending[i] = static_cast<char>(i);
  EXPECT_EQ(both(ascending), 0x46DD794Eu);
  EXPECT_EQ(both(""), 0u);
}

TEST(both_ways_agree_at_all_lengths_and_places) {
  Random random(1);
  std::string bytes(20'000, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random.below(256));
  for (size_t length = 0; length < 300; ++length) both(bytes.substr(random.below(64), length));
  for (int i = 0; i < 100; ++i) {
    const size_t first = random.below(bytes.size());
    const size_t length = random.below(bytes.size() - first + 1);
    EXPECT_EQ(crc32c(bytes.data() + first, length),
              testing::crc32c_portable(bytes.data() + first, length));
  }
}

TEST(goes_on_where_it_ended) {
  Random random(2);
  std::string bytes(10'000, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random.below(256));
  const uint32_t whole = both(bytes);
  for (int i = 0; i < 50; ++i) {
    const size_t cut = random.below(bytes.size() + 1);
    EXPECT_EQ(both(bytes.substr(cut), both(bytes.substr(0, cut))), whole);
  }
}

}  // namespace
}  // namespace pgalloc::crc32c_test
