// However the kernel is asked, the answer is the same.

#include "backing/commit_probe.h"

#include <errno.h>

#include <algorithm>
#include <new>

#include "native/rig.h"

namespace pgalloc::commit_probe_test {
namespace {

using native_tests::FakeKernel;
using native_tests::pages;
using native_tests::Random;
using native_tests::Rig;
using native_tests::runs_where;

constexpr uint64_t kPages = 300;

std::vector<FileRange> found(Rig& rig) {
  CommitProbe probe(*rig.file, *rig.chunks);
  std::vector<FileRange> runs;
  EXPECT(probe.find_runs(pages(0, kPages), runs).ok());
  return runs;
}

int fail() { return errno = ENOSYS, -1; }

TEST(every_way_of_asking_finds_the_same_pages) {
  for (uint64_t seed = 0; seed < 12; ++seed) {
    Random random(seed);
    Rig rig;
    EXPECT(rig.file->grow(kChunkSize).ok());
    EXPECT(rig.chunks->map(rig.file->fd(), pages(0, kPages)).ok());
    std::vector<bool> written(kPages);
    std::vector<bool> committed(kPages);
    for (uint64_t page = 0; page < kPages; ++page) {
      if (!random.one_in(seed % 4 + 2)) continue;
      committed[page] = true;
      if (seed >= 6 && random.one_in(2)) {
        EXPECT(rig.file->commit(pages(page, page + 1)).ok());  // and not touched
        continue;
      }
      written[page] = true;
      if (random.one_in(2)) {
        rig.fill(pages(page, page + 1), 'x');
      } else {
        *rig.chunks->address(page * page_size()) = 'x';
      }
    }
    const auto all = runs_where(kPages, [&](uint64_t page) { return committed[page]; });
    const auto seen = runs_where(kPages, [&](uint64_t page) { return written[page]; });
    FakeKernel fake;
    const bool counts = CommitProbe(*rig.file, *rig.chunks).count(pages(0, 1)).has_value();
    if (counts) EXPECT_EQ(found(rig), all);
    fake.calls.pagemap_scan = [](int, os::PagemapScan*) { return fail(); };
    fake.begin();
    if (counts) EXPECT_EQ(found(rig), all);
    fake.calls.cachestat = [](int, uint64_t, uint64_t, os::CacheStat*) { return fail(); };
    fake.begin();
    EXPECT_EQ(found(rig), seen);  // fallocated pages cannot be seen without a count
    EXPECT_EQ(CommitProbe(*rig.file, *rig.chunks).count_written(pages(0, kPages)),
              std::count(written.begin(), written.end(), true) * page_size());
  }
}

TEST(an_error_of_the_kernel_is_told) {
  Rig rig;
  EXPECT(rig.file->grow(kChunkSize).ok());
  rig.fill(pages(1, 2), 'x');
  FakeKernel fake;
  fake.calls.cachestat = [](int, uint64_t, uint64_t, os::CacheStat*) { return fail(); };
  fake.calls.mincore = [](void*, size_t, unsigned char*) { return fail(); };
  fake.begin();
  CommitProbe probe(*rig.file, *rig.chunks);
  std::vector<FileRange> runs;
  EXPECT_EQ(probe.find_runs(pages(0, 2), runs).error_number(), ENOSYS);
}

TEST(nothing_stays_mapped_when_memory_runs_out) {
  Rig rig;
  EXPECT(rig.file->grow(kChunkSize).ok());
  static int mapped;
  mapped = 0;
  FakeKernel fake;
  fake.calls.cachestat = [](int, uint64_t, uint64_t, os::CacheStat*) { return fail(); };
  fake.calls.mmap = [](void* at, size_t length, int protection, int flags, int fd, off_t offset) {
    ++mapped;
    return os::kernel().mmap(at, length, protection, flags, fd, offset);
  };
  fake.calls.munmap = [](void* address, size_t length) {
    --mapped;
    return os::kernel().munmap(address, length);
  };
  fake.begin();
  CommitProbe probe(*rig.file, *rig.chunks);
  std::vector<FileRange> runs;
  bool thrown = false;
  try {
    native_tests::allocations_until_failure = 0;
    (void)probe.find_runs(pages(0, 2), runs);
  } catch (const std::bad_alloc&) {
    thrown = true;
  }
  native_tests::allocations_until_failure = -1;
  EXPECT(thrown);
  EXPECT_EQ(mapped, 0);
}

}  // namespace
}  // namespace pgalloc::commit_probe_test
