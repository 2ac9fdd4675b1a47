// However the kernel is asked, the answer is the same.

#include "backing/commit_probe.h"

#include <errno.h>
#include <unistd.h>

#include <algorithm>
#include <new>

#include "native/memory.h"
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

// A file on a disk, whose runs lseek() tells: data in [3, 5 1/2) and [7, 8) pages.
class Runs {
 public:
  explicit Runs(int fails_at = 0, int error = 0) {
    made = 0;
    failing = fails_at;
    error_number = error;
    fake_.calls.cachestat = [](int, uint64_t, uint64_t, os::CacheStat*) { return fail(); };
    fake_.calls.lseek = [](int, off_t offset, int whence) {
      if (++made == failing) return errno = error_number, off_t{-1};
      const auto page = static_cast<off_t>(page_size());
      const off_t edges[] = {3 * page, 5 * page + page / 2, 7 * page, 8 * page};
      for (int i = 0; i < 4; i += 2) {
        if (offset >= edges[i + 1]) continue;
        const off_t data = std::max(offset, edges[i]);
        return whence == SEEK_DATA ? data : offset < edges[i] ? offset : edges[i + 1];
      }
      return errno = ENXIO, off_t{-1};
    };
    fake_.begin();
  }
  static inline int made;
  static inline int failing;
  static inline int error_number;

 private:
  FakeKernel fake_;
};

TEST(runs_are_whole_pages_within_the_range) {
  Rig rig;
  EXPECT(rig.file->grow(kChunkSize).ok());
  const Runs runs;
  const CommitProbe probe(*rig.file, *rig.chunks);
  const auto written = [&](uint64_t first, uint64_t end) {
    return probe.count_written(pages(first, end)) / page_size();
  };
  EXPECT_EQ(written(0, 20), 4u);
  EXPECT_EQ(written(0, 3), 0u);
  EXPECT_EQ(written(0, 4), 1u);
  EXPECT_EQ(written(4, 5), 1u);
  EXPECT_EQ(written(4, 8), 3u);
  EXPECT_EQ(written(5, 6), 1u);
  EXPECT_EQ(written(6, 7), 0u);
  EXPECT_EQ(written(7, 8), 1u);
  EXPECT_EQ(written(8, 20), 0u);
}

TEST(what_cannot_be_asked_counts_as_written) {
  Rig rig;
  EXPECT(rig.file->grow(kChunkSize).ok());
  const CommitProbe probe(*rig.file, *rig.chunks);
  for (const int call : {1, 2, 3, 4}) {
    const Runs failing(call, EIO);
    EXPECT_EQ(probe.count_written(pages(0, 10)), 10 * page_size());
  }
  // The file ends there.
  for (const auto& [call, expected] : {std::pair{1, 0}, {2, 0}, {3, 3}, {4, 3}}) {
    const Runs ends(call, ENXIO);
    EXPECT_EQ(probe.count_written(pages(0, 10)), expected * page_size());
  }
}

// How the kernel is asked for the runs of so many pages, `committed` of which are said to be there.
enum class Way { kPagemap, kSeek, kMincore, kNone };

Way way_of(Rig& rig, uint64_t page_count, uint64_t committed_pages) {
  static Way way;
  static uint64_t committed;
  way = Way::kNone;
  committed = committed_pages;
  FakeKernel fake;
  // Pages are fallocated one by one from the first on, so that no way sees any.
  fake.calls.cachestat = [](int, uint64_t start, uint64_t length, os::CacheStat* stat) {
    const uint64_t first = start / page_size();
    const uint64_t end = first + length / page_size();
    *stat = {};
    stat->cached = std::min(end, committed) - std::min(first, committed);
    return 0;
  };
  fake.calls.pagemap_scan = [](int, os::PagemapScan* request) {
    way = Way::kPagemap;  // sees all of them
    auto* const regions = reinterpret_cast<os::PageRegion*>(request->regions);
    regions[0] = {request->start, request->start + committed * page_size(), os::kPageIsPresent};
    request->walk_end = request->end;
    return 1;
  };
  fake.calls.lseek = [](int, off_t, int) {
    way = Way::kSeek;
    return errno = ENXIO, off_t{-1};
  };
  fake.calls.mincore = [](void*, size_t length, unsigned char* present) {
    way = Way::kMincore;
    std::fill_n(present, length / page_size(), 0);
    return 0;
  };
  fake.begin();
  CommitProbe probe(*rig.file, *rig.chunks);
  std::vector<FileRange> runs;
  EXPECT(probe.find_runs(pages(0, page_count), runs).ok());
  const FileRange expected = pages(0, committed);
  EXPECT_EQ(runs, committed == 0 ? std::vector<FileRange>{} : std::vector{expected});
  return way;
}

// With the costs at the head of commit_probe.cc: 750 ns for a run that is sought, of which there are
// at most one more than pages there or not there; 3 and 48 ns for each page otherwise.
TEST(a_mixed_range_is_asked_for_in_the_way_that_costs_least) {
  Rig unmapped;
  EXPECT(unmapped.file->grow(kChunkSize).ok());
  EXPECT_EQ(way_of(unmapped, 31, 1), Way::kMincore);
  EXPECT_EQ(way_of(unmapped, 32, 1), Way::kSeek);
  EXPECT_EQ(way_of(unmapped, 32, 31), Way::kSeek);
  EXPECT_EQ(way_of(unmapped, 32, 2), Way::kMincore);
  EXPECT_EQ(way_of(unmapped, 47, 2), Way::kSeek);
  EXPECT_EQ(way_of(unmapped, 46, 44), Way::kMincore);
  Rig mapped;
  EXPECT(mapped.file->grow(kChunkSize).ok());
  EXPECT(mapped.chunks->map(mapped.file->fd(), pages(0, 1)).ok());
  EXPECT_EQ(way_of(mapped, 499, 1), Way::kPagemap);
  EXPECT_EQ(way_of(mapped, 500, 1), Way::kSeek);
  EXPECT_EQ(way_of(mapped, 500, 499), Way::kSeek);
  EXPECT_EQ(way_of(mapped, 500, 2), Way::kPagemap);
}

TEST(nothing_and_everything_need_no_second_question) {
  Rig rig;
  EXPECT(rig.file->grow(kChunkSize).ok());
  EXPECT_EQ(way_of(rig, 100, 0), Way::kNone);
  EXPECT_EQ(way_of(rig, 100, 100), Way::kNone);
  EXPECT_EQ(way_of(rig, 1, 1), Way::kNone);
}

// A process whose page tables can be asked, a few runs at a time.
class PageTables {
 public:
  PageTables() {
    opened = closed = scans = 0;
    fake_.calls.open = [](const char* path, int flags, mode_t mode) {
      if (std::string(path) != "/proc/self/pagemap") return os::kernel().open(path, flags, mode);
      ++opened;
      return opens ? 0 : (errno = EACCES, -1);  // 0: a process without standard input
    };
    fake_.calls.close = [](int fd) { return fd == 0 ? ++closed, 0 : os::kernel().close(fd); };
    fake_.calls.pagemap_scan = [](int, os::PagemapScan* request) {
      ++scans;
      if (scans == fails_at) return -1;
      if (empty) return request->walk_end = request->end, 0;
      // The run that was told last, once more, and the next one: every second page is there.
      auto* const regions = reinterpret_cast<os::PageRegion*>(request->regions);
      const uint64_t next = align_up(request->start, 2 * page_size());
      int count = 0;
      for (const uint64_t page : {next - 2 * page_size(), next}) {
        if (page >= request->end || (scans == 1 && page < next)) continue;
        regions[count++] = {page, page + page_size(), os::kPageIsPresent};
      }
      // What is written behind those that are counted is no answer.
      regions[count] = {next + page_size(), request->end, os::kPageIsPresent};
      request->walk_end = std::min(request->end, next + page_size());
      if (scans == stuck_at) request->walk_end = request->start;
      return count;
    };
    fake_.calls.cachestat = [](int, uint64_t, uint64_t length, os::CacheStat* stat) {
      *stat = {};
      stat->cached = length / page_size() / 2;
      return 0;
    };
    fake_.begin();
  }
  static inline int opened;
  static inline int closed;
  static inline int scans;
  static inline bool opens = true;
  static inline int fails_at = 0;
  static inline int stuck_at = 0;
  static inline bool empty = false;

 private:
  FakeKernel fake_;
};

struct Mapped : Rig {
  Mapped() {
    EXPECT(file->grow(kChunkSize).ok());
    EXPECT(chunks->map(file->fd(), pages(0, 1)).ok());
    for (uint64_t page = 0; page < kPages; page += 2) fill(pages(page, page + 1), 'x');
  }
};

TEST(a_scan_of_the_page_tables_goes_on_where_it_stopped) {
  Mapped rig;
  const auto every_second = runs_where(40, [](uint64_t page) { return page % 2 == 0; });
  const PageTables tables;
  {
    CommitProbe probe(*rig.file, *rig.chunks);
    for (int i = 1; i <= 2; ++i) {
      PageTables::scans = 0;
      std::vector<FileRange> runs;
      EXPECT(probe.find_runs(pages(0, 40), runs).ok());
      EXPECT_EQ(runs, every_second);
      EXPECT_EQ(PageTables::scans, 21);  // the last one only sees what is known
    }
    EXPECT_EQ(PageTables::closed, 0);
  }
  EXPECT_EQ(PageTables::opened, 1);
  EXPECT_EQ(PageTables::closed, 1);
}

TEST(page_tables_that_cannot_be_asked_are_not_asked_again) {
  Mapped rig;
  const auto every_second = runs_where(40, [](uint64_t page) { return page % 2 == 0; });
  for (const int how : {0, 1, 2}) {
    PageTables::opens = how != 0;
    PageTables::fails_at = how == 1 ? 2 : 0;
    PageTables::stuck_at = how == 2 ? 2 : 0;
    const PageTables tables;
    CommitProbe probe(*rig.file, *rig.chunks);
    for (int i = 0; i < 2; ++i) {
      std::vector<FileRange> runs;
      EXPECT(probe.find_runs(pages(0, 40), runs).ok());
      EXPECT_EQ(runs, every_second);
    }
    EXPECT_EQ(PageTables::opened, 1);
    EXPECT_EQ(PageTables::scans, how == 0 ? 0 : 2);
  }
  PageTables::opens = true;
  PageTables::fails_at = PageTables::stuck_at = 0;
}

TEST(page_tables_without_the_pages_are_asked_again) {
  Mapped rig;
  const auto every_second = runs_where(40, [](uint64_t page) { return page % 2 == 0; });
  PageTables::empty = true;
  const PageTables tables;
  CommitProbe probe(*rig.file, *rig.chunks);
  for (const int scans : {1, 2}) {
    std::vector<FileRange> runs;
    EXPECT(probe.find_runs(pages(0, 40), runs).ok());
    EXPECT_EQ(runs, every_second);
    EXPECT_EQ(PageTables::scans, scans);
  }
  PageTables::empty = false;
}

TEST(a_range_longer_than_a_window_is_asked_for_in_parts) {
  Rig rig;
  constexpr uint64_t kWindow = uint64_t{1} << 30;
  EXPECT(rig.file->grow(3 * kChunkSize).ok());
  const FileRange at_border{kWindow - page_size(), kWindow + page_size()};
  rig.fill(at_border, 'x');
  rig.fill({2 * kWindow, 2 * kWindow + page_size()}, 'x');
  static std::vector<size_t> windows;
  windows.clear();
  FakeKernel fake;
  fake.calls.cachestat = [](int, uint64_t, uint64_t, os::CacheStat*) { return fail(); };
  fake.calls.mincore = [](void* address, size_t length, unsigned char* present) {
    windows.push_back(length);
    return os::kernel().mincore(address, length, present);
  };
  fake.begin();
  CommitProbe probe(*rig.file, *rig.chunks);
  std::vector<FileRange> runs;
  EXPECT(probe.find_runs({page_size(), 2 * kWindow + 2 * page_size()}, runs).ok());
  EXPECT_EQ(runs, (std::vector<FileRange>{at_border, {2 * kWindow, 2 * kWindow + page_size()}}));
  EXPECT_EQ(windows, (std::vector<size_t>{kWindow, kWindow, page_size()}));
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
    native_tests::all_fail = true;
    (void)probe.find_runs(pages(0, 2), runs);
  } catch (const std::bad_alloc&) {
    thrown = true;
  }
  native_tests::all_fail = false;
  EXPECT(thrown);
  EXPECT_EQ(mapped, 0);
}

}  // namespace
}  // namespace pgalloc::commit_probe_test
