// Section C and rows J7 as the file's lock sees them; the counts themselves are page_states_test.cc's.

#include "file/references.h"

#include "native/memory.h"
#include "native/rig.h"

namespace pgalloc::references_test {
namespace {

using native_tests::pages;
using native_tests::Rig;
using Counts = References::Counts;

TEST(c3_c4_the_last_reference_gone_wakes_the_reclaimer) {
  Rig rig;
  rig.allocate(4);
  EXPECT(rig.references.inc_ref(pages(1, 3), 0).ok());
  EXPECT(rig.reclaimer.start().ok());
  EXPECT(rig.references.dec_ref(pages(0, 3)).ok());
  EXPECT(rig.wait_for_reclaim());
  EXPECT_EQ(rig.refs(0), 0u);
  EXPECT_EQ(rig.refs(1), 1u);
  EXPECT_EQ(rig.stats().freed_bytes, page_size());
}

TEST(c5_unique_means_one_reference_on_each_page) {
  Rig rig;
  rig.allocate(4);
  EXPECT(*rig.references.has_unique_ref(pages(0, 4)));
  EXPECT(rig.references.inc_ref(pages(3, 4), 0).ok());
  EXPECT(!*rig.references.has_unique_ref(pages(0, 4)));
  EXPECT(*rig.references.has_unique_ref(pages(0, 3)));
  EXPECT(!rig.references.has_unique_ref(pages(3, 5)).ok());
}

TEST(j7_references_of_an_image_are_adopted_one_by_one) {
  Rig rig;
  EXPECT(rig.file->grow(kChunkSize).ok());
  {
    const FileLock lock(rig.state);
    rig.state.pages.restore({{pages(0, 2), {2, 0, MemoryKind::kTmpfs, false}},
                             {pages(4, 6), {1, 0, MemoryKind::kTmpfs, false}}});
  }
  EXPECT_EQ(rig.references.unadopted(), (Counts{{pages(0, 2), 2}, {pages(4, 6), 1}}));
  EXPECT(rig.references.adopt(pages(0, 2)).ok());
  EXPECT(rig.references.adopt(pages(0, 1)).ok());
  EXPECT_EQ(rig.references.adopt(pages(0, 2)).code(), ErrorCode::kRefCount);
  EXPECT_EQ(rig.references.unadopted_bytes(), 3 * page_size());
  EXPECT_EQ(rig.references.adopt(pages(2, 3)).code(), ErrorCode::kRange);
  EXPECT_EQ(*rig.references.drop_unadopted(), 3 * page_size());
  EXPECT_EQ(rig.refs(0), 2u);
  EXPECT_EQ(rig.refs(1), 1u);
  EXPECT_EQ(rig.stats().freed_bytes, 2 * page_size());
  EXPECT_EQ(*rig.references.drop_unadopted(), 0u);
}

TEST(a_lease_ends_with_its_reference_or_without) {
  Rig rig;
  rig.allocate(2);
  EXPECT(rig.references.begin_lease(pages(0, 2)).ok());
  EXPECT(rig.references.end_lease(pages(0, 1)).ok());
  EXPECT_EQ(rig.references.drop_lease(pages(0, 2)).code(), ErrorCode::kRefCount);
  EXPECT_EQ(rig.refs(0), 1u);
  EXPECT(rig.references.drop_lease(pages(1, 2)).ok());
  EXPECT_EQ(rig.refs(1), 0u);
}

TEST(a_fork_leases_what_is_pinned) {
  Rig rig;
  rig.allocate(6);
  EXPECT(rig.references.inc_ref(pages(2, 3), 0).ok());
  Discardable unpinned;
  unpinned.range = pages(4, 6);
  EXPECT(rig.discarder.unpin(unpinned).ok());
  Counts leases;
  {
    const FileLock lock(rig.state);
    rig.references.lease_pinned(&leases);
  }
  EXPECT_EQ(leases, (Counts{{pages(0, 2), 1}, {pages(2, 3), 2}, {pages(3, 4), 1}}));
  EXPECT_EQ(rig.refs(0), 2u);
  EXPECT_EQ(rig.refs(2), 3u);
  EXPECT_EQ(rig.refs(4), 1u);
  for (const auto& [range, handles] : leases) EXPECT(rig.references.drop_lease(range).ok());
  EXPECT_EQ(rig.refs(0), 1u);
  EXPECT(rig.references.end_handle(unpinned).ok());
  EXPECT_EQ(rig.refs(4), 0u);
  EXPECT(!unpinned.unpinned && unpinned.list == nullptr);
}

TEST(a_fork_that_runs_out_of_memory_leases_nothing) {
  for (int64_t left = 0;; ++left) {
    Rig rig;
    rig.allocate(6);
    EXPECT(rig.references.inc_ref(pages(2, 3), 0).ok());
    Counts leases;
    native_tests::allocations_left = left;
    bool failed = false;
    try {
      const FileLock lock(rig.state);
      rig.references.lease_pinned(&leases);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    native_tests::allocations_left = -1;
    if (!failed) break;
    EXPECT(leases.empty());
    EXPECT_EQ(rig.refs(0), 1u);
    EXPECT_EQ(rig.refs(2), 2u);
    EXPECT_EQ(rig.references.end_lease(pages(0, 1)).code(), ErrorCode::kRefCount);
  }
}

TEST(i1_a_closed_file_has_no_references) {
  Rig rig;
  rig.allocate(1);
  rig.state.gate = FileState::kClosed;
  const FileRange range = pages(0, 1);
  EXPECT_EQ(rig.references.inc_ref(range, 0).code(), ErrorCode::kClosed);
  EXPECT_EQ(rig.references.dec_ref(range).code(), ErrorCode::kClosed);
  EXPECT_EQ(rig.references.has_unique_ref(range).status().code(), ErrorCode::kClosed);
  EXPECT_EQ(rig.references.begin_lease(range).code(), ErrorCode::kClosed);
  EXPECT_EQ(rig.references.end_lease(range).code(), ErrorCode::kClosed);
  EXPECT_EQ(rig.references.drop_lease(range).code(), ErrorCode::kClosed);
  EXPECT_EQ(rig.references.adopt(range).code(), ErrorCode::kClosed);
  EXPECT_EQ(rig.references.drop_unadopted().status().code(), ErrorCode::kClosed);
}

}  // namespace
}  // namespace pgalloc::references_test
