// Which pages are in huge ones (section H), with page tables that say what the test wants.

#include "file/huge_usage.h"

#include <errno.h>

#include <string>
#include <vector>

#include "native/rig.h"

namespace pgalloc::huge_usage_test {
namespace {

using native_tests::FakeKernel;
using native_tests::Rig;
using std::chrono::hours;
using std::chrono::nanoseconds;

// Page tables in which chosen offsets of the rig's file are in huge pages, a few at a time.
class PageTables {
 public:
  explicit PageTables(Rig& rig) {
    base = reinterpret_cast<uint64_t>(rig.chunks->base());
    huge = {};
    scans = 0;
    fails = can_open = false;
    fake_.calls.open = [](const char* path, int flags, mode_t mode) {
      if (std::string(path) == "/proc/self/pagemap" && !can_open) return errno = EMFILE, -1;
      return os::kernel().open(path, flags, mode);
    };
    can_open = true;
    fake_.calls.pagemap_scan = [](int fd, os::PagemapScan* request) {
      if (request->required_categories != (os::kPageIsPresent | os::kPageIsHuge)) {
        return os::kernel().pagemap_scan(fd, request);
      }
      ++scans;
      if (fails) return errno = ENOTTY, -1;
      auto* const regions = reinterpret_cast<os::PageRegion*>(request->regions);
      for (const FileRange& run : huge) {
        const uint64_t start = std::max(request->start, base + run.start);
        const uint64_t end = std::min(request->end, base + run.end);
        if (start >= end) continue;
        regions[0] = {start, end, request->returned_categories};
        request->walk_end = end;
        return 1;
      }
      request->walk_end = request->end;
      return 0;
    };
    fake_.begin();
  }

  static inline uint64_t base;
  static inline std::vector<FileRange> huge;
  static inline int scans;
  static inline bool fails;
  static inline bool can_open;

 private:
  FakeKernel fake_;
};

FileRange huge_pages(FileRange from, uint64_t first, uint64_t end) {
  return {from.start + first * huge_page_size(), from.start + end * huge_page_size()};
}

FileRange allocate(Rig& rig, uint64_t count,
                   AllocationMode mode = AllocationMode::kAllocateAndCommit, uint64_t more = 0) {
  const auto range = rig.allocator.allocate(
      {.length = count * huge_page_size() + more, .mode = mode, .huge = HugeWish::kAsked},
      /*may_wait=*/true);
  return EXPECT(range.ok()) ? *range : FileRange{};
}

// With a clock that stands still until a test advances it. What is counted then:
struct Scene : Rig {
  Scene() { clock.use_manual(nanoseconds(0), nanoseconds(0)); }
  uint64_t bytes_after(hours wait) {
    clock.advance(wait);
    EXPECT(*scanner.update(nullptr));
    FileLock lock(state);
    return scanner.huge_usage().bytes();
  }
};

uint64_t bytes(Rig& rig) {
  FileLock lock(rig.state);
  return rig.scanner.huge_usage().bytes();
}

TEST(h6_huge_pages_in_use_are_counted) {
  Scene rig;
  const FileRange range = allocate(rig, 4);
  PageTables tables(rig);
  PageTables::huge = {huge_pages(range, 0, 2), huge_pages(range, 3, 4)};
  EXPECT_EQ(bytes(rig), 0u);
  EXPECT(*rig.scanner.update(nullptr));
  EXPECT_EQ(bytes(rig), 3 * huge_page_size());
  // Pages that are freed do not count any more, at once.
  EXPECT(rig.references.dec_ref(huge_pages(range, 0, 1)).ok());
  EXPECT_EQ(bytes(rig), 2 * huge_page_size());
  FileLock lock(rig.state);
  std::vector<uint64_t> found;
  for (const PageSegment& segment : rig.state.pages.segments()) {
    found.push_back(rig.scanner.huge_usage().bytes_of(segment));
  }
  EXPECT_EQ(found, (std::vector<uint64_t>{0, 2 * huge_page_size()}));
}

TEST(h6_what_is_not_known_to_be_committed_does_not_count) {
  Rig rig;
  const FileRange range = allocate(rig, 2, AllocationMode::kAllocateOnly);
  EXPECT(rig.file->map(*rig.chunks, range).ok());
  PageTables tables(rig);
  PageTables::huge = {range};
  EXPECT(*rig.scanner.update(nullptr));
  EXPECT_EQ(bytes(rig), 0u);
}

TEST(h6_a_look_is_due_when_something_changed_and_else_when_the_clock_allows) {
  Scene rig;
  const FileRange range = allocate(rig, 2);
  PageTables tables(rig);
  EXPECT(*rig.scanner.update(nullptr));
  EXPECT_EQ(PageTables::scans, 1);
  // Nothing of ours has changed: current, without a look.
  EXPECT(*rig.scanner.update(nullptr));
  EXPECT_EQ(PageTables::scans, 1);
  // The kernel may have made a huge page.
  PageTables::huge = {huge_pages(range, 0, 1)};
  EXPECT_EQ(rig.bytes_after(hours(1)), huge_page_size());
  const uint64_t scans = rig.stats().scans;
  // A part goes, and with it the account; it says nothing of the rest, which is split.
  EXPECT(rig.references.dec_ref({range.start, range.start + page_size()}).ok());
  EXPECT(rig.reclaimer.start().ok());
  EXPECT(rig.wait_for_reclaim());
  PageTables::huge = {};
  EXPECT(!*rig.scanner.update(nullptr));  // too soon, and it is said
  EXPECT_EQ(bytes(rig), huge_page_size() - page_size());
  EXPECT_EQ(rig.bytes_after(hours(1)), 0u);
  EXPECT_EQ(rig.stats().scans, scans);  // nothing was to be counted
}

TEST(h6_memory_cgroups_are_looked_at_without_a_throttle) {
  Scene rig;
  const FileRange range = allocate(rig, 1);
  PageTables tables(rig);
  EXPECT(*rig.scanner.update(nullptr));
  PageTables::huge = {range};
  const std::vector<uint32_t> memcg_ids{7};
  EXPECT(*rig.scanner.update(&memcg_ids));
  EXPECT_EQ(bytes(rig), huge_page_size());
}

TEST(h6_a_kernel_that_does_not_tell_is_no_error) {
  Scene rig;
  const FileRange range = allocate(rig, 2);
  PageTables tables(rig);
  PageTables::huge = {range};
  PageTables::fails = true;
  EXPECT(*rig.scanner.update(nullptr));
  EXPECT_EQ(bytes(rig), 0u);
  EXPECT(*rig.scanner.update(nullptr));
  PageTables::fails = false;
  PageTables::can_open = false;
  EXPECT_EQ(rig.bytes_after(hours(1)), 0u);
  PageTables::can_open = true;
  EXPECT_EQ(rig.bytes_after(hours(1)), 2 * huge_page_size());
  // And again: what is not known is not told.
  PageTables::fails = true;
  EXPECT_EQ(rig.bytes_after(hours(1)), 0u);
}

TEST(h6_without_huge_areas_nothing_is_looked_at) {
  Rig rig;
  PageTables tables(rig);
  rig.fill(rig.allocate(1024), 'x');
  EXPECT(*rig.scanner.update(nullptr));
  EXPECT_EQ(PageTables::scans, 0);
}

TEST(b20_huge_pages_that_came_as_small_ones_are_counted) {
  Rig rig;
  PageTables tables(rig);
  const FileRange place = allocate(rig, 4, AllocationMode::kAllocateOnly);
  EXPECT(rig.references.dec_ref(place).ok());
  EXPECT(rig.reclaimer.start().ok());
  EXPECT(rig.wait_for_reclaim());
  EXPECT_EQ(rig.stats().huge_fallback_bytes, 0u);
  EXPECT_EQ(PageTables::scans, 0);
  PageTables::huge = {huge_pages(place, 0, 1), huge_pages(place, 2, 3)};
  // The part of a huge page at its end was not to be a huge one.
  EXPECT_EQ(allocate(rig, 3, AllocationMode::kAllocateAndCommit, page_size()).start, place.start);
  EXPECT_EQ(rig.stats().huge_fallback_bytes, huge_page_size());
  PageTables::huge = {{0, kChunkSize}};
  allocate(rig, 3, AllocationMode::kAllocateAndWritePopulate);
  EXPECT_EQ(rig.stats().huge_fallback_bytes, huge_page_size());
  PageTables::huge = {};
  allocate(rig, 2, AllocationMode::kAllocateAndWritePopulate);
  EXPECT_EQ(rig.stats().huge_fallback_bytes, 3 * huge_page_size());
}

TEST(b20_without_an_answer_nothing_is_counted) {
  Rig rig;
  PageTables tables(rig);
  PageTables::fails = true;
  allocate(rig, 2);
  PageTables::fails = false;
  PageTables::can_open = false;
  allocate(rig, 2);
  EXPECT_EQ(rig.stats().huge_fallback_bytes, 0u);
}

TEST(b20_so_are_those_for_which_there_is_no_place) {
  Rig rig;
  const uint64_t area = rig.state.pages.areas().area_bytes();
  for (uint64_t at = 0; at < kChunkSize; at += area) rig.allocate(area / page_size());
  for (uint64_t at = 0; at < kChunkSize; at += area) {
    EXPECT(rig.references.dec_ref({at, at + area / 2}).ok());
  }
  EXPECT(rig.reclaimer.start().ok());
  EXPECT(rig.wait_for_reclaim());
  allocate(rig, 2, AllocationMode::kAllocateOnly, page_size());
  EXPECT_EQ(rig.stats().huge_allocations, 0u);
  EXPECT_EQ(rig.stats().huge_fallback_bytes, 2 * huge_page_size());
}

}  // namespace
}  // namespace pgalloc::huge_usage_test
