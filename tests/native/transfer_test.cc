// Reading and writing all of it, however little the kernel takes at a time.

#include "os/transfer.h"

#include <errno.h>

#include <algorithm>
#include <cstring>

#include "native/support.h"
#include "os/fault_plan.h"

namespace pgalloc::transfer_test {
namespace {

using native_tests::FakeKernel;

// A file of memory of which each call gets a few bytes at most.
class Slow {
 public:
  explicit Slow(size_t most_at_once) {
    most = most_at_once;
    calls = 0;
    bytes.assign(16, '.');
    fake_.calls.pread = [](int, void* out, size_t size, off_t offset) {
      ++calls;
      const auto at = std::min(static_cast<size_t>(offset), bytes.size());
      const size_t count = std::min({size, most, bytes.size() - at});
      std::memcpy(out, bytes.data() + at, count);
      return static_cast<ssize_t>(count);
    };
    fake_.calls.pwrite = [](int, const void* data, size_t size, off_t offset) {
      ++calls;
      const size_t count = std::min(size, most);
      std::memcpy(bytes.data() + offset, data, count);
      return static_cast<ssize_t>(count);
    };
    fake_.begin();
  }

  static inline std::string bytes;
  static inline size_t most;
  static inline int calls;

 private:
  FakeKernel fake_;
};

TEST(all_is_written_and_read) {
  for (const size_t most : {1, 2, 3, 100}) {
    const Slow slow(most);
    EXPECT(os::write_at(5, 4, "abcdefg", 7).ok());
    EXPECT_EQ(Slow::bytes, "....abcdefg.....");
    char out[7];
    EXPECT_EQ(*os::read_at(5, 4, out, 7), 7u);
    EXPECT_EQ(std::string(out, 7), "abcdefg");
    EXPECT_EQ(Slow::calls, 2 * static_cast<int>((7 + most - 1) / most));
  }
}

TEST(the_end_of_a_file_is_a_short_read_and_no_write) {
  const Slow slow(3);
  char out[8];
  EXPECT_EQ(*os::read_at(5, 11, out, 8), 5u);
  EXPECT_EQ(*os::read_at(5, 20, out, 8), 0u);
  Slow::most = 0;
  const Status status = os::write_at(5, 0, "a", 1);
  EXPECT_EQ(status.error_number(), EIO);
}

TEST(a_fault_of_no_call_is_refused) {
  EXPECT(!os::install_fault({.name = "no such call"}));
  EXPECT(os::install_fault({.name = "pread"}));
  EXPECT(!os::install_fault({.name = "pwrite"}));  // one at a time
  os::remove_fault();
}

}  // namespace
}  // namespace pgalloc::transfer_test
