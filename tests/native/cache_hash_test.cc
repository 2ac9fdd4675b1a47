// SipHash-1-3, beside what CPython's own gives for bytes under no secret (PYTHONHASHSEED=0; sys.hash_info).

#include "cache/hash.h"

#include <set>
#include <string>

#include "native/test.h"

namespace pgalloc::cache_hash_test {
namespace {

using cache::hash_of;

TEST(it_is_what_others_compute) {
  EXPECT_EQ(hash_of("a", {}), 0x407448d2b89b1813u);
  EXPECT_EQ(hash_of("1234567", {}), 0xa33d651594fdae81u);
  EXPECT_EQ(hash_of("12345678", {}), 0x3489982430560a87u);
  EXPECT_EQ(hash_of("123456789 and some more", {}), 0xfb6c94a3916b2233u);
}

TEST(length_contents_and_secret_count) {
  std::set<uint64_t> hashes;
  for (size_t length = 0; length < 20; ++length) {
    const std::string zeros(length, '\0');
    hashes.insert(hash_of(zeros, {}));
    hashes.insert(hash_of(zeros + '\x80', {}));
    hashes.insert(hash_of(zeros, {.first = 1}));
    hashes.insert(hash_of(zeros, {.second = 1}));
  }
  EXPECT_EQ(hashes.size(), 80u);
}

}  // namespace
}  // namespace pgalloc::cache_hash_test
