// What the model of tests/unit and the driver of stress/ do not look at.

#include "segment/segment_set.h"

#include "native/support.h"
#include "pages/page_use.h"

namespace pgalloc::segment_set_test {
namespace {

using native_tests::pages;

TEST(what_is_exchanged_brings_its_nodes_along) {
  RangeSet many;
  RangeSet few;
  for (uint64_t i = 0; i < 500; ++i) many.insert(pages(2 * i, 2 * i + 1), {});
  few.insert(pages(0, 1), {});
  const size_t bytes_of_many = many.memory_bytes();
  const size_t bytes_of_few = few.memory_bytes();
  EXPECT(bytes_of_many > bytes_of_few);
  many.swap(few);
  EXPECT_EQ(few.memory_bytes(), bytes_of_many);
  EXPECT_EQ(many.memory_bytes(), bytes_of_few);
  EXPECT_EQ(few.size(), 500u);
  EXPECT_EQ(many.size(), 1u);
  EXPECT_EQ(few.verify(), std::nullopt);
  EXPECT_EQ(many.verify(), std::nullopt);
}

}  // namespace
}  // namespace pgalloc::segment_set_test
