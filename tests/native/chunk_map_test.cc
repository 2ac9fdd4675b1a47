// Where pages are in memory: reserved once, mapped chunk by chunk.

#include "backing/chunk_map.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <bit>
#include <memory>
#include <string>
#include <vector>

#include "native/rig.h"

namespace pgalloc::chunk_map_test {
namespace {

using native_tests::FakeKernel;
using native_tests::Rig;

// What is mapped and kept out of core dumps; mappings may be refused.
class Calls {
 public:
  struct Mapping {
    uint64_t length;
    int protection;
    int flags;
  };
  Calls() {
    mapped.clear();
    not_dumped.clear();
    refused_above = UINT64_MAX;
    fake_.calls.mmap = [](void* at, size_t length, int protection, int flags, int fd,
                          off_t offset) -> void* {
      mapped.push_back({length, protection, flags});
      if (length > refused_above || (fd >= 0 && refuses_files)) {
        errno = ENOMEM;
        return MAP_FAILED;
      }
      return os::kernel().mmap(at, length, protection, flags, fd, offset);
    };
    fake_.calls.madvise = [](void* at, size_t length, int advice) {
      if (advice == MADV_DONTDUMP) not_dumped.push_back(length);
      return os::kernel().madvise(at, length, advice);
    };
    fake_.begin();
  }
  ~Calls() { refuses_files = false; }

  static inline std::vector<Mapping> mapped;
  static inline std::vector<uint64_t> not_dumped;
  static inline uint64_t refused_above;
  static inline bool refuses_files = false;

 private:
  FakeKernel fake_;
};

TEST(the_default_is_four_times_the_memory_as_a_power_of_two) {
  const uint64_t memory = static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES)) * page_size();
  EXPECT(std::has_single_bit(default_capacity()));
  EXPECT(default_capacity() >= 4 * memory);
  EXPECT(default_capacity() < 8 * memory || default_capacity() == kChunkSize);
}

TEST(less_is_reserved_while_the_kernel_refuses) {
  const Calls calls;
  Calls::refused_above = 3 * kChunkSize;
  constexpr uint64_t kLeast = uint64_t{2} << 20;
  const auto map = ChunkMap::reserve(std::nullopt);
  EXPECT_EQ((*map)->capacity(), 2 * kChunkSize);
  Calls::refused_above = kChunkSize;
  EXPECT_EQ((*ChunkMap::reserve(std::nullopt))->capacity(), kChunkSize);
  Calls::refused_above = kLeast;
  EXPECT_EQ((*ChunkMap::reserve(std::nullopt))->capacity(), kLeast);
  Calls::refused_above = kLeast - 1;
  const auto none = ChunkMap::reserve(std::nullopt);
  EXPECT_EQ(none.status().error_number(), ENOMEM);
  EXPECT(none.status().describe().find("capacity=") != std::string::npos);
}

// With a kernel that has addresses without end: not every machine's has (sanitizers take most).
TEST(each_file_leaves_addresses_for_hundreds_more) {
  static uintptr_t next = uintptr_t{1} << 48;
  FakeKernel kernel;
  kernel.calls.mmap = [](void*, size_t length, int, int, int, off_t) -> void* {
    return reinterpret_cast<void*>(next += length);
  };
  kernel.calls.munmap = [](void*, size_t) { return 0; };
  kernel.calls.madvise = [](void*, size_t, int) { return 0; };
  kernel.begin();
  std::vector<std::shared_ptr<ChunkMap>> maps;
  uint64_t reserved = 0;
  for (int count = 0; count < 600; ++count) {
    maps.push_back(std::move(*ChunkMap::reserve(std::nullopt)));
    reserved += maps.back()->capacity();
  }
  EXPECT(maps.back()->capacity() >= kChunkSize);
  EXPECT(reserved <= uint64_t{1} << 46);
  const uint64_t least = default_capacity();
  maps.clear();
  EXPECT(default_capacity() > least);
}

TEST(under_a_limit_on_addresses_several_files_fit) {
  rlimit before{};
  EXPECT_EQ(::getrlimit(RLIMIT_AS, &before), 0);
  const rlimit limit{uint64_t{1} << 50, before.rlim_max};  // nothing here comes near it
  EXPECT_EQ(::setrlimit(RLIMIT_AS, &limit), 0);
  const uint64_t capacity = default_capacity();
  const rlimit tight{uint64_t{4} << 30, before.rlim_max};
  EXPECT_EQ(::setrlimit(RLIMIT_AS, &tight), 0);
  const uint64_t smaller = default_capacity();
  EXPECT_EQ(::setrlimit(RLIMIT_AS, &before), 0);
  EXPECT_EQ(smaller, uint64_t{256} << 20);
  EXPECT(capacity > smaller);
}

TEST(what_was_asked_for_is_reserved_or_nothing) {
  const Calls calls;
  EXPECT_EQ((*ChunkMap::reserve(3 * kChunkSize + 5))->capacity(), 3 * kChunkSize + 5);
  Calls::refused_above = 2 * kChunkSize;
  Calls::mapped.clear();
  EXPECT_EQ(ChunkMap::reserve(3 * kChunkSize).status().error_number(), ENOMEM);
  EXPECT_EQ(Calls::mapped.size(), 1u);
}

TEST(only_chunks_that_are_needed_are_mapped_and_each_once) {
  Rig rig;
  EXPECT(rig.file->grow(4 * kChunkSize).ok());
  const Calls calls;
  const auto map = std::move(*ChunkMap::reserve(3 * kChunkSize + page_size()));
  Calls::mapped.clear();
  EXPECT(map->map(rig.file->fd(), {kChunkSize - 1, kChunkSize + 1}).ok());
  EXPECT_EQ(Calls::mapped.size(), 2u);
  EXPECT(map->is_mapped({0, 2 * kChunkSize}));
  EXPECT(!map->is_mapped({0, 2 * kChunkSize + 1}));
  EXPECT(!map->is_mapped({2 * kChunkSize, 2 * kChunkSize + 1}));
  EXPECT(map->map(rig.file->fd(), {kChunkSize, 2 * kChunkSize}).ok());
  EXPECT_EQ(Calls::mapped.size(), 2u);
  // The last one ends with the reservation.
  EXPECT(map->map(rig.file->fd(), {3 * kChunkSize, 3 * kChunkSize + 1}).ok());
  EXPECT_EQ(Calls::mapped.back().length, page_size());
  EXPECT(!map->is_mapped({2 * kChunkSize, 2 * kChunkSize + 1}));
  EXPECT(map->is_mapped({3 * kChunkSize, 3 * kChunkSize + 1}));
}

TEST(the_address_of_a_page_is_where_it_is_mapped) {
  Rig rig;
  EXPECT(rig.file->grow(2 * kChunkSize).ok());
  const auto map = std::move(*ChunkMap::reserve(2 * kChunkSize));
  const uint64_t at = kChunkSize + page_size();
  EXPECT(map->map(rig.file->fd(), {at, at + 1}).ok());
  *map->address(at) = 'x';
  EXPECT_EQ(rig.contents({at, at + 1}), "x");
}

TEST(what_is_only_read_is_mapped_for_reading) {
  Rig rig;
  EXPECT(rig.file->grow(kChunkSize).ok());
  const Calls calls;
  EXPECT((*ChunkMap::reserve(kChunkSize))->map(rig.file->fd(), {0, 1}).ok());
  EXPECT_EQ(Calls::mapped.back().protection, PROT_READ | PROT_WRITE);
  EXPECT((*ChunkMap::reserve(kChunkSize, /*writable=*/false))->map(rig.file->fd(), {0, 1}).ok());
  EXPECT_EQ(Calls::mapped.back().protection, PROT_READ);
}

TEST(neither_reservation_nor_chunks_are_dumped) {
  Rig rig;
  EXPECT(rig.file->grow(kChunkSize).ok());
  const Calls calls;
  const auto map = std::move(*ChunkMap::reserve(2 * kChunkSize));
  EXPECT(map->map(rig.file->fd(), {0, 1}).ok());
  EXPECT_EQ(Calls::not_dumped, (std::vector<uint64_t>{2 * kChunkSize, kChunkSize}));
}

TEST(a_chunk_that_could_not_be_mapped_stays_reserved_and_can_be_tried_again) {
  Rig rig;
  EXPECT(rig.file->grow(kChunkSize).ok());
  const Calls calls;
  const auto map = std::move(*ChunkMap::reserve(kChunkSize));
  Calls::refuses_files = true;
  EXPECT_EQ(map->map(rig.file->fd(), {0, 1}).error_number(), ENOMEM);
  EXPECT(!map->is_mapped({0, 1}));
  EXPECT_EQ(Calls::mapped.back().protection, PROT_NONE);
  EXPECT((Calls::mapped.back().flags & MAP_FIXED_NOREPLACE) != 0);
  Calls::refuses_files = false;
  EXPECT(map->map(rig.file->fd(), {0, 1}).ok());
  EXPECT(map->is_mapped({0, 1}));
}

// Each stretch is mappings of the kernel's, of which a process has 65,530.
TEST(advice_comes_in_so_many_stretches_and_no_more) {
  const auto chunks = std::move(*ChunkMap::reserve(uint64_t{64} << 30));
  const uint64_t huge = huge_page_size();
  uint64_t stretches = 0;
  for (uint64_t start = 0; start + huge <= chunks->capacity(); start += 2 * huge) {
    chunks->advise({start, start + huge}, true);
    if (chunks->allows_huge(start)) ++stretches;
  }
  EXPECT_EQ(stretches, 8192u);
  // What joins others begins none.
  chunks->advise({huge, 2 * huge}, true);
  EXPECT(chunks->allows_huge(huge));
}

TEST(a_closed_file_is_not_mapped_any_more) {
  Rig rig;
  EXPECT(rig.file->grow(2 * kChunkSize).ok());
  const auto map = std::move(*ChunkMap::reserve(2 * kChunkSize));
  EXPECT(map->map(rig.file->fd(), {0, 1}).ok());
  map->seal();
  EXPECT(map->map(rig.file->fd(), {kChunkSize, kChunkSize + 1}).code() == ErrorCode::kClosed);
  EXPECT(map->is_mapped({0, 1}));
}

}  // namespace
}  // namespace pgalloc::chunk_map_test
