// Descriptors are closed once, 0 too.

#include "os/descriptor.h"

#include "native/support.h"

namespace pgalloc::descriptor_test {
namespace {

using native_tests::FakeKernel;
using os::Descriptor;

// What would be closed.
struct Closed {
  Closed() {
    all.clear();
    kernel.calls.close = [](int fd) { return all.push_back(fd), 0; };
    kernel.begin();
  }
  FakeKernel kernel;
  static inline std::vector<int> all;
};

TEST(the_end_of_a_descriptor_closes_it) {
  const Closed closed;
  for (const int fd : {0, 1, 70}) {
    const Descriptor descriptor(fd);
    EXPECT(static_cast<bool>(descriptor));
    EXPECT_EQ(descriptor.get(), fd);
  }
  EXPECT_EQ(Closed::all, (std::vector<int>{0, 1, 70}));
}

TEST(what_could_not_be_opened_is_not_closed) {
  const Closed closed;
  {
    const Descriptor none;
    const Descriptor failed(-1);
    EXPECT(!none && !failed);
    EXPECT(none.get() < 0);
  }
  EXPECT(Closed::all.empty());
}

TEST(a_descriptor_that_moves_is_closed_where_it_went) {
  const Closed closed;
  {
    Descriptor first(0);
    Descriptor second(std::move(first));
    EXPECT(!first);  // NOLINT(bugprone-use-after-move)
    EXPECT_EQ(second.get(), 0);
    Descriptor third(7);
    third = std::move(second);
    EXPECT_EQ(third.get(), 0);
    EXPECT(Closed::all.empty());
  }
  EXPECT_EQ(Closed::all.size(), 2u);
  {
    Descriptor held(5);
    held = {};
  }
  EXPECT_EQ(Closed::all.back(), 5);
}

}  // namespace
}  // namespace pgalloc::descriptor_test
