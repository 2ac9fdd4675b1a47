// Section H. Where a test says what the kernel answers, it is one that cannot count (before Linux 6.5),
// so that mincore() tells page by page.

#include "file/commit_scanner.h"

#include <errno.h>

#include <functional>
#include <new>
#include <set>

#include "native/rig.h"

namespace pgalloc::commit_scanner_test {
namespace {

using native_tests::FakeKernel;
using native_tests::pages;
using native_tests::Rig;
using std::chrono::milliseconds;
using std::chrono::nanoseconds;

// Has no cachestat; mincore says that chosen pages are committed.
class KernelWithoutCounts {
 public:
  KernelWithoutCounts() {
    committed = {};
    stored_bytes = 0;
    looked = [] {};
    fake_.calls.fstat = [](int fd, struct stat* out) {
      const int result = os::kernel().fstat(fd, out);
      out->st_blocks = static_cast<blkcnt_t>(stored_bytes / 512);
      return result;
    };
    fake_.calls.cachestat = [](int, uint64_t, uint64_t, os::CacheStat*) {
      errno = ENOSYS;
      return -1;
    };
    fake_.calls.mmap = [](void* at, size_t length, int protection, int flags, int fd,
                          off_t offset) {
      window_ = static_cast<uint64_t>(offset);
      return os::kernel().mmap(at, length, protection, flags, fd, offset);
    };
    fake_.calls.mincore = [](void*, size_t length, unsigned char* out) {
      for (uint64_t at = 0; at < length; at += page_size()) {
        *out++ = committed.contains((window_ + at) / page_size());
      }
      looked();
      return 0;
    };
    fake_.begin();
  }

  static inline std::set<uint64_t> committed;  // pages
  static inline uint64_t stored_bytes;         // what the file system says
  static inline std::function<void()> looked;  // called after each look, without the lock

 private:
  static inline uint64_t window_;
  FakeKernel fake_;
};

// The pages that are booked.
std::set<uint64_t> booked(Rig& rig) {
  std::set<uint64_t> found;
  FileLock lock(rig.state);
  for (const PageSegment& segment : rig.state.pages.segments()) {
    if (!segment.use.committed) continue;
    for (uint64_t at = segment.range.start; at < segment.range.end; at += page_size()) {
      found.insert(at / page_size());
    }
  }
  return found;
}

void touch(Rig& rig) {  // there is something to scan again
  ++KernelWithoutCounts::stored_bytes;
  KernelWithoutCounts::stored_bytes += 512;
  FileLock lock(rig.state);
  rig.state.changes.count();
}

using Pages = std::set<uint64_t>;

TEST(h3_a_real_scan_books_what_was_written) {
  Rig rig;
  rig.allocate(8, /*memcg_id=*/4);
  rig.fill(pages(2, 4), 'x');
  EXPECT(*rig.scanner.update(nullptr));
  EXPECT_EQ(booked(rig), (Pages{2, 3}));
  EXPECT_EQ(rig.state.ledger.memcg(4)[static_cast<size_t>(MemoryKind::kTmpfs)], 2 * page_size());
}

TEST(h3_books_what_the_kernel_reports_of_pages_with_references) {
  Rig rig;
  rig.allocate(8);
  EXPECT(rig.references.dec_ref(pages(0, 1)).ok());
  KernelWithoutCounts kernel;
  KernelWithoutCounts::committed = {0, 1, 5, 6, 9};
  KernelWithoutCounts::stored_bytes = 4 * page_size();
  EXPECT(*rig.scanner.update(nullptr));
  EXPECT_EQ(booked(rig), (Pages{1, 5, 6}));
  EXPECT_EQ(rig.stats().scans, 1u);
  EXPECT_EQ(rig.stats().voided_results, 0u);
}

TEST(h2_nothing_is_looked_at_if_nothing_can_have_changed) {
  Rig rig;
  rig.allocate(4);
  rig.clock.use_manual(nanoseconds(0), nanoseconds(0));
  KernelWithoutCounts kernel;
  EXPECT(*rig.scanner.update(nullptr));  // nothing stored, nothing known
  EXPECT_EQ(rig.stats().scans, 0u);
  KernelWithoutCounts::stored_bytes = 3 * page_size();
  KernelWithoutCounts::committed = {1};
  EXPECT(*rig.scanner.update(nullptr));
  EXPECT_EQ(rig.stats().scans, 1u);
  // The file system says three pages, one is found: that will not be different next time.
  rig.clock.advance(std::chrono::hours(1));
  EXPECT(*rig.scanner.update(nullptr));
  EXPECT_EQ(rig.stats().scans, 1u);
  touch(rig);
  EXPECT(*rig.scanner.update(nullptr));
  EXPECT_EQ(rig.stats().scans, 2u);
}

TEST(h3_a_page_that_changes_between_look_and_book_is_not_booked) {
  Rig rig;
  rig.allocate(8);
  rig.clock.use_manual(nanoseconds(0), nanoseconds(0));
  KernelWithoutCounts kernel;
  KernelWithoutCounts::committed = {2, 3, 4, 6};
  KernelWithoutCounts::stored_bytes = 4 * page_size();
  KernelWithoutCounts::looked = [&] {  // page 3 is decommitted meanwhile
    FileLock lock(rig.state);
    rig.state.pages.mark_decommitted(pages(3, 4));
    rig.state.changes.note(pages(3, 4));
  };
  EXPECT(*rig.scanner.update(nullptr));
  EXPECT_EQ(booked(rig), (Pages{2, 4, 6}));
  EXPECT_EQ(rig.stats().voided_results, 1u);

  KernelWithoutCounts::looked = [] {};
  touch(rig);
  rig.clock.advance(milliseconds(10));
  EXPECT(*rig.scanner.update(nullptr));
  EXPECT_EQ(booked(rig), (Pages{2, 3, 4, 6}));
}

TEST(h3_a_page_with_a_new_owner_is_not_booked_for_what_the_old_one_did) {
  Rig rig;
  rig.allocate(4);
  KernelWithoutCounts kernel;
  KernelWithoutCounts::committed = {0, 1, 2, 3};
  KernelWithoutCounts::stored_bytes = 4 * page_size();
  KernelWithoutCounts::looked = [&] {
    if (rig.refs(1) == 0) return;
    EXPECT(rig.references.dec_ref(pages(1, 2)).ok());
    {
      FileLock lock(rig.state);
      EXPECT_EQ(rig.state.pages.take_waste(UINT64_MAX), std::optional(pages(1, 2)));
      rig.state.changes.note(pages(1, 2));
      rig.state.pages.finish_release(pages(1, 2));
    }
    EXPECT_EQ(rig.allocate(1), pages(1, 2));
  };
  EXPECT(*rig.scanner.update(nullptr));
  EXPECT_EQ(booked(rig), (Pages{0, 2, 3}));
}

TEST(h2_scans_pause_for_ten_milliseconds_or_eight_times_their_duration) {
  Rig rig;
  rig.allocate(4);
  rig.clock.use_manual(milliseconds(1000), nanoseconds(0));
  KernelWithoutCounts kernel;
  const auto update = [&] {
    touch(rig);
    return *rig.scanner.update(nullptr);
  };
  EXPECT(update());
  EXPECT(!update());
  rig.clock.advance(milliseconds(10) - nanoseconds(1));
  EXPECT(!update());
  rig.clock.advance(nanoseconds(1));
  KernelWithoutCounts::looked = [&] { rig.clock.advance(milliseconds(5)); };
  EXPECT(update());  // takes 5 ms
  KernelWithoutCounts::looked = [] {};
  rig.clock.advance(milliseconds(40) - nanoseconds(1));
  EXPECT(!update());
  rig.clock.advance(nanoseconds(1));
  EXPECT(update());
  EXPECT_EQ(rig.stats().scans, 3u);
  EXPECT(!update());
  rig.scanner.reset_throttle();
  EXPECT(update());
}

TEST(h2_memory_cgroups_are_scanned_by_themselves_and_without_a_throttle) {
  Rig rig;
  rig.allocate(2, 1);
  rig.allocate(2, 2);
  rig.clock.use_manual(nanoseconds(0), nanoseconds(0));
  KernelWithoutCounts kernel;
  KernelWithoutCounts::committed = {0, 2, 3};
  KernelWithoutCounts::stored_bytes = 3 * page_size();
  const std::vector<uint32_t> one = {1};
  const std::vector<uint32_t> two = {7, 2};
  EXPECT(*rig.scanner.update(&one));
  EXPECT_EQ(booked(rig), Pages{0});
  EXPECT(*rig.scanner.update(&two));
  EXPECT_EQ(booked(rig), (Pages{0, 2, 3}));
  EXPECT_EQ(rig.stats().scans, 2u);
}

TEST(h2_one_full_scan_runs_at_a_time) {
  Rig rig;
  rig.allocate(4);
  KernelWithoutCounts kernel;
  KernelWithoutCounts::stored_bytes = page_size();
  int refused = 0;
  KernelWithoutCounts::looked = [&] { refused += !*rig.scanner.update(nullptr); };
  EXPECT(*rig.scanner.update(nullptr));
  EXPECT_EQ(refused, 1);
}

TEST(a_scan_that_runs_out_of_memory_does_not_block_later_ones) {
  Rig rig;
  rig.allocate(4);
  rig.clock.use_manual(nanoseconds(0), nanoseconds(0));
  KernelWithoutCounts kernel;
  KernelWithoutCounts::committed = {1};
  KernelWithoutCounts::stored_bytes = page_size();
  FakeKernel fake;
  fake.calls = os::sys();
  fake.calls.mmap = [](void*, size_t, int, int, int, off_t) -> void* { throw std::bad_alloc(); };
  fake.begin();
  bool thrown = false;
  try {
    (void)rig.scanner.update(nullptr);
  } catch (const std::bad_alloc&) {
    thrown = true;
  }
  EXPECT(thrown);
  EXPECT_EQ(rig.stats().scans, 1u);
  const KernelWithoutCounts again;
  KernelWithoutCounts::committed = {1};
  KernelWithoutCounts::stored_bytes = page_size();
  EXPECT(*rig.scanner.update(nullptr));
  EXPECT_EQ(booked(rig), Pages{1});
}

TEST(an_error_of_the_kernel_is_told_and_throttles) {
  Rig rig;
  rig.allocate(4);
  rig.clock.use_manual(nanoseconds(0), nanoseconds(0));
  KernelWithoutCounts kernel;
  KernelWithoutCounts::stored_bytes = page_size();
  FakeKernel fake;
  fake.calls = os::sys();
  fake.calls.mincore = [](void*, size_t, unsigned char*) {
    errno = EAGAIN;
    return -1;
  };
  fake.begin();
  const auto failed = rig.scanner.update(nullptr);
  EXPECT(!failed.ok() && failed.status().error_number() == EAGAIN);
  EXPECT(!*rig.scanner.update(nullptr));
}

TEST(verify_finds_a_scan_of_changes_that_are_yet_to_come) {
  Rig rig;
  rig.allocate(4);
  KernelWithoutCounts kernel;
  KernelWithoutCounts::committed = {1};
  KernelWithoutCounts::stored_bytes = page_size();
  EXPECT(*rig.scanner.update(nullptr));
  EXPECT_EQ(rig.verify(), std::nullopt);
  const uint64_t number = rig.state.changes.number();
  std::destroy_at(&rig.state.changes);
  std::construct_at(&rig.state.changes);
  EXPECT_EQ(rig.verify(), "the last scan saw changes that are yet to come");
  while (rig.state.changes.number() < number) rig.state.changes.count();
}

}  // namespace
}  // namespace pgalloc::commit_scanner_test
