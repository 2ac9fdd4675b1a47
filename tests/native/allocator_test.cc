// Section B, but for where the place is: that is placement_test.cc's.

#include "file/allocator.h"

#include <errno.h>
#include <sys/resource.h>

#include <csignal>
#include <thread>

#include "native/memory.h"
#include "native/rig.h"
#include "os/fault_plan.h"

namespace pgalloc::allocator_test {
namespace {

using native_tests::pages;
using native_tests::Rig;

Result<FileRange> allocate(Rig& rig, AllocateRequest request) {
  return rig.allocator.allocate(request, /*may_wait=*/true);
}

TEST(b1_lengths_are_whole_pages) {
  Rig rig;
  for (const uint64_t length : {uint64_t{0}, uint64_t{1}, page_size() + 1}) {
    EXPECT_EQ(allocate(rig, {.length = length}).status().code(), ErrorCode::kRange);
  }
}

TEST(b2_new_pages_have_one_reference_and_nothing_committed) {
  Rig rig;
  EXPECT_EQ(*allocate(rig, {.length = 2 * page_size(), .memcg_id = 3}), pages(0, 2));
  EXPECT_EQ(rig.file->size(), kChunkSize);
  EXPECT_EQ(*rig.file->stored_bytes(), 0u);
  const FileLock lock(rig.state);
  const auto segments = rig.state.pages.segments();
  EXPECT_EQ(segments.size(), 1u);
  EXPECT(segments[0].use == (PageUse{1, 3, MemoryKind::kAnonymous, false}));
  EXPECT_EQ(rig.state.stats.allocations, 1u);
}

TEST(b3_the_maximum_counts_freed_pages_until_they_are_gone) {
  Rig rig({.max_allocatable_bytes = 4 * page_size()});
  EXPECT_EQ(allocate(rig, {.length = 5 * page_size()}).status().code(), ErrorCode::kOutOfMemory);
  rig.allocate(3);
  EXPECT_EQ(allocate(rig, {.length = 2 * page_size()}).status().code(), ErrorCode::kOutOfMemory);
  EXPECT(rig.references.dec_ref(pages(0, 2)).ok());
  // No thread reclaims: waiting is no use.
  EXPECT_EQ(allocate(rig, {.length = 2 * page_size()}).status().code(), ErrorCode::kOutOfMemory);

  EXPECT(os::install_fault({.name = "fallocate", .hold = true}));
  EXPECT(rig.reclaimer.start().ok());
  while (!os::hold_reached()) std::this_thread::yield();
  bool must_wait = false;
  EXPECT(!rig.allocator.allocate({.length = 2 * page_size()}, /*may_wait=*/false, &must_wait).ok());
  EXPECT(must_wait);
  std::thread waiter([&] { EXPECT(allocate(rig, {.length = 2 * page_size()}).ok()); });
  while (rig.reclaimer.waiters() == 0) std::this_thread::yield();
  os::let_go();
  waiter.join();
  os::remove_fault();
  EXPECT_EQ(rig.refs(0), 1u);
}

TEST(b10_where_the_file_may_not_grow_freed_pages_are_waited_for) {
  ::signal(SIGXFSZ, SIG_IGN);  // as Python does
  const rlimit limit{16 * page_size(), 16 * page_size()};
  EXPECT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  Rig rig;
  const AllocateRequest request{.length = 12 * page_size()};
  EXPECT_EQ(rig.allocate(10), pages(0, 10));
  EXPECT(rig.references.dec_ref(pages(0, 10)).ok());
  // No thread reclaims: waiting is no use.
  EXPECT_EQ(allocate(rig, request).status().error_number(), EFBIG);

  EXPECT(os::install_fault({.name = "fallocate", .hold = true}));
  EXPECT(rig.reclaimer.start().ok());
  while (!os::hold_reached()) std::this_thread::yield();
  bool must_wait = false;
  EXPECT(!rig.allocator.allocate(request, /*may_wait=*/false, &must_wait).ok());
  EXPECT(must_wait);
  std::thread waiter([&] { EXPECT(allocate(rig, request).ok()); });
  while (must_wait && rig.reclaimer.waiters() == 0) std::this_thread::yield();
  os::let_go();
  waiter.join();
  os::remove_fault();
  EXPECT_EQ(rig.refs(11), 1u);
}

TEST(b5_only_who_writes_everything_gets_freed_pages) {
  Rig rig;
  rig.fill(rig.allocate(2), 'x');
  EXPECT(rig.references.dec_ref(pages(0, 2)).ok());
  EXPECT_EQ(rig.allocate(1), pages(2, 3));
  EXPECT_EQ(*allocate(rig, {.length = page_size(), .will_be_overwritten = true}), pages(0, 1));
  EXPECT(rig.all(pages(0, 1), 'x'));
  EXPECT_EQ(
      *allocate(rig, {.length = page_size(), .mode = AllocationMode::kAllocateAndWritePopulate}),
      pages(1, 2));
  EXPECT(rig.all(pages(1, 2), '\0'));
  EXPECT_EQ(rig.stats().recycled_bytes, 2 * page_size());
  rig.fill(pages(1, 2), 'x');
  EXPECT(rig.references.dec_ref(pages(1, 2)).ok());
  EXPECT_EQ(*allocate(rig, {.length = page_size(), .mode = AllocationMode::kAllocateAndCommit}),
            pages(1, 2));
  EXPECT(rig.all(pages(1, 2), '\0'));
  EXPECT_EQ(rig.stats().recycled_bytes, 3 * page_size());
}

TEST(b9_b10_what_fails_changes_nothing) {
  Rig rig;
  EXPECT(os::install_fault({.name = "ftruncate", .error_number = ENOSPC}));
  EXPECT_EQ(allocate(rig, {.length = page_size()}).status().error_number(), ENOSPC);
  os::remove_fault();
  EXPECT_EQ(allocate(rig, {.length = 2 * kChunkSize}).status().code(), ErrorCode::kOutOfMemory);
  EXPECT_EQ(rig.file->size(), 0u);
  EXPECT_EQ(rig.stats().allocations, 0u);
}

TEST(b13_commits_all_of_it_or_drops_the_reference) {
  Rig rig;
  const AllocateRequest request{.length = 4 * page_size(),
                                .mode = AllocationMode::kAllocateAndCommit};
  EXPECT_EQ(*allocate(rig, request), pages(0, 4));
  EXPECT_EQ(*rig.file->stored_bytes(), 4 * page_size());
  EXPECT(os::install_fault({.name = "fallocate", .error_number = ENOSPC}));
  EXPECT_EQ(allocate(rig, request).status().error_number(), ENOSPC);
  os::remove_fault();
  EXPECT_EQ(rig.refs(4), 0u);
}

TEST(b9_no_page_is_lost_when_memory_runs_out) {
  const AllocateRequest request{.length = uint64_t{8} << 20,
                                .mode = AllocationMode::kAllocateAndCommit};
  enum class Way { kNew, kRefused, kRecycled };
  for (const Way way : {Way::kNew, Way::kRefused, Way::kRecycled}) {
    for (int64_t left = 0;; ++left) {
      Rig rig;
      if (way == Way::kRecycled) EXPECT(rig.references.dec_ref(*allocate(rig, request)).ok());
      if (way == Way::kRefused) {
        EXPECT(os::install_fault({.name = "fallocate", .error_number = ENOSPC}));
      }
      uint64_t used = 0;
      native_tests::allocations_left = left;
      try {
        if (allocate(rig, request).ok()) used = request.length;
      } catch (const std::bad_alloc&) {  // NOLINT: it may do without, too
      }
      const bool failed = native_tests::allocations_left < 0;
      native_tests::allocations_left = -1;
      os::remove_fault();
      const FileLock lock(rig.state);
      EXPECT_EQ(rig.state.pages.used_bytes(), used);
      if (!failed) break;
    }
  }
}

TEST(b18_with_manual_zeroing_new_pages_are_zeroed) {
  Rig rig({.manual_zeroing = true});
  EXPECT(rig.file->grow(kChunkSize).ok());
  rig.fill(pages(0, 3), 'x');
  EXPECT_EQ(rig.allocate(2), pages(0, 2));
  EXPECT(rig.all(pages(0, 2), '\0') && rig.all(pages(2, 3), 'x'));
  EXPECT(os::install_fault({.name = "pwrite", .error_number = EIO}));
  EXPECT(!allocate(rig, {.length = page_size()}).ok());
  os::remove_fault();
  EXPECT_EQ(rig.refs(2), 0u);
}

}  // namespace
}  // namespace pgalloc::allocator_test
