// Populating: which parts of a range, by which call.

#include "backing/prefault.h"

#include <errno.h>

#include <algorithm>
#include <mutex>
#include <string>
#include <thread>

#include "native/memory.h"
#include "native/support.h"

namespace pgalloc::prefault_test {
namespace {

using native_tests::FakeKernel;

constexpr size_t kMib = size_t{1} << 20;
char* const kAddress = reinterpret_cast<char*>(uintptr_t{1} << 40);  // nothing is there

// Writes calls down, and makes none.
class Calls {
 public:
  Calls() {
    populated = locked = unlocked = {};
    error = 0;
    testing::reset_prefault();
    fake_.calls.madvise = [](void* address, size_t length, int) {
      const std::lock_guard lock(mutex);
      populated.push_back(range_at(address, length));
      errno = error;
      return error == 0 ? 0 : -1;
    };
    fake_.calls.mlock = [](const void* address, size_t length) {
      locked.push_back(range_at(address, length));
      return 0;
    };
    fake_.calls.munlock = [](const void* address, size_t length) {
      unlocked.push_back(range_at(address, length));
      return 0;
    };
    fake_.begin();
  }
  ~Calls() { testing::reset_prefault(); }

  static inline std::mutex mutex;
  static inline std::vector<FileRange> populated, locked, unlocked;  // relative to kAddress
  static inline int error;

 private:
  static FileRange range_at(const void* address, size_t length) {
    const auto start = static_cast<uint64_t>(static_cast<const char*>(address) - kAddress);
    return {start, start + length};
  }
  FakeKernel fake_;
};

TEST(a_single_page_is_left_to_its_first_touch) {
  const Calls calls;
  prefault(kAddress, page_size());
  EXPECT(Calls::populated.empty());
  prefault(kAddress, 2 * page_size());
  EXPECT_EQ(Calls::populated.size(), 1u);
}

TEST(what_is_populated_is_not_locked) {
  const Calls calls;
  prefault(kAddress, 4 * kMib);
  EXPECT_EQ(Calls::populated, (std::vector<FileRange>{{0, 4 * kMib}}));
  EXPECT(Calls::locked.empty());
}

TEST(from_8_mib_on_each_processor_takes_a_part_of_whole_huge_pages) {
  const Calls calls;
  prefault(kAddress, 8 * kMib - page_size());
  EXPECT_EQ(Calls::populated.size(), 1u);
  Calls::populated.clear();

  const size_t length = 64 * kMib + 3 * page_size();
  prefault(kAddress, length);
  std::sort(Calls::populated.begin(), Calls::populated.end(),
            [](const FileRange& a, const FileRange& b) { return a.start < b.start; });
  const size_t threads = std::clamp(std::thread::hardware_concurrency(), 1u, 8u);
  EXPECT_EQ(Calls::populated.size(), threads);
  uint64_t end = 0;
  for (const FileRange& part : Calls::populated) {
    EXPECT_EQ(part.start, end);
    EXPECT(is_aligned(part.start, huge_page_size()));
    end = part.end;
  }
  EXPECT_EQ(end, length);
}

TEST(where_the_kernel_cannot_populate_whole_huge_pages_are_locked_and_unlocked) {
  const Calls calls;
  Calls::error = EINVAL;
  prefault(kAddress + page_size(), 6 * kMib);
  EXPECT_EQ(Calls::locked, (std::vector<FileRange>{{2 * kMib, 4 * kMib}, {4 * kMib, 6 * kMib}}));
  EXPECT_EQ(Calls::unlocked, Calls::locked);
  EXPECT(!testing::prefault_by_populate() && testing::prefault_by_mlock());
  prefault(kAddress, 4 * kMib);  // it is not tried again
  EXPECT_EQ(Calls::populated.size(), 1u);
  EXPECT_EQ(Calls::locked.size(), 4u);
}

TEST(memory_is_cleared_to_its_last_byte) {
  std::vector<char> memory(20 * kMib + 5, 'x');
  clear_memory(memory.data() + 1, memory.size() - 2);
  EXPECT(memory.front() == 'x' && memory.back() == 'x');
  EXPECT_EQ(std::count(memory.begin(), memory.end(), '\0'), static_cast<long>(memory.size() - 2));
}

TEST(where_there_is_no_memory_for_threads_it_is_cleared_all_the_same) {
  std::string memory(16 * kMib, 'x');
  for (int64_t left = 0;; ++left) {
    std::ranges::fill(memory, 'x');
    native_tests::allocations_left = left;
    clear_memory(memory.data(), memory.size());
    const bool failed = native_tests::allocations_left < 0;
    native_tests::allocations_left = -1;
    EXPECT(std::ranges::count(memory, '\0') == std::ssize(memory));
    if (!failed) break;
  }
}

}  // namespace
}  // namespace pgalloc::prefault_test
