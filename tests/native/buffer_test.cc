// Room for the bytes of an extent.

#include "backing/buffer.h"

#include <malloc.h>

#include "native/support.h"

namespace pgalloc::buffer_test {
namespace {

TEST(it_grows_by_whole_pages_and_stays_where_it_is_if_it_is_large_enough) {
  Buffer buffer;
  EXPECT(buffer.data() == nullptr);
  char* const small = buffer.reserve(1);
  EXPECT(is_aligned(reinterpret_cast<uintptr_t>(small), page_size()));
  small[0] = 'a';
  EXPECT(buffer.reserve(page_size()) == small);
  EXPECT_EQ(buffer.data()[0], 'a');
  char* const large = buffer.reserve(page_size() + 1);
  EXPECT(is_aligned(reinterpret_cast<uintptr_t>(large), page_size()));
  EXPECT(buffer.reserve(2 * page_size()) == large);
  EXPECT(buffer.reserve(1) == large);
}

TEST(without_memory_it_is_empty_and_can_be_asked_again) {
  volatile size_t too_much = SIZE_MAX / 2;  // g++ warns of what it can foresee
  Buffer buffer;
  for (const size_t before : {size_t{0}, page_size()}) {
    buffer.reserve(before);
    bool thrown = false;
    try {
      buffer.reserve(too_much);
    } catch (const std::bad_alloc&) {
      thrown = true;
    }
    EXPECT(thrown);
    EXPECT(buffer.data() == nullptr);
    EXPECT(buffer.reserve(1) != nullptr);
  }
}

TEST(what_it_held_goes_back) {
  constexpr size_t kBytes = 1 << 20;
  const auto held = [] {
    const struct mallinfo2 info = ::mallinfo2();
    return info.uordblks + info.hblkhd;
  };
  const size_t before = held();
  for (int i = 0; i < 100; ++i) {
    Buffer buffer;
    buffer.reserve(kBytes);
    buffer.reserve(2 * kBytes);
  }
  EXPECT(held() < before + kBytes);
}

}  // namespace
}  // namespace pgalloc::buffer_test
