// Leases are counted as often as they are held, here and in the file.

#include "sharing/lease_table.h"

#include "native/memory.h"
#include "native/sharing.h"

namespace pgalloc::lease_table_test {
namespace {

using native_tests::make_file;
using native_tests::pages;
using native_tests::take_pages;

struct Scene {
  Scene() : file(make_file()), all(take_pages(*file, 6)), table(file) {}
  ~Scene() {
    EXPECT(table.drop_some(SIZE_MAX));
    EXPECT(*file->has_unique_ref(all));
    EXPECT(file->dec_ref(all).ok());
  }
  // A reference of the test's own, which the table takes over.
  void add(FileRange range) {
    EXPECT(file->inc_ref(range, 0).ok());
    EXPECT(table.add(range).ok());
  }
  uint32_t refs(uint64_t page) const {
    for (const PageSegment& segment : file->segments()) {
      if (segment.range.contains(page * page_size())) return segment.use.refs;
    }
    return 0;
  }

  const std::shared_ptr<MemoryFile> file;
  const FileRange all;
  LeaseTable table;
};

TEST(pages_are_held_as_often_as_they_were_leased) {
  Scene scene;
  EXPECT(scene.table.held().empty());
  EXPECT(!scene.table.has({0, 0}));
  scene.add(pages(0, 4));
  scene.add(pages(2, 6));
  EXPECT_EQ(scene.table.bytes(), 6 * page_size());
  EXPECT(scene.table.has(pages(0, 6)));
  EXPECT_EQ(scene.refs(2), 3u);
  EXPECT(scene.table.remove(pages(2, 4)).ok());
  EXPECT(scene.table.has(pages(0, 6)));
  EXPECT_EQ(scene.refs(2), 2u);
  EXPECT(scene.table.remove(pages(1, 5)).ok());
  EXPECT_EQ(scene.table.bytes(), 2 * page_size());
  EXPECT(scene.table.has(pages(0, 1)));
  EXPECT(!scene.table.has(pages(0, 2)));
  EXPECT_EQ(scene.refs(2), 1u);
}

TEST(what_is_not_leased_cannot_be_given_back) {
  Scene scene;
  scene.add(pages(0, 2));
  for (const FileRange range : {pages(0, 3), pages(2, 3), FileRange{0, 0}}) {
    EXPECT_EQ(scene.table.remove(range).code(), ErrorCode::kRefCount);
    EXPECT_EQ(scene.table.hand_over(range).code(), ErrorCode::kRefCount);
  }
  EXPECT_EQ(scene.table.bytes(), 2 * page_size());
  EXPECT_EQ(scene.refs(0), 2u);
}

TEST(what_is_handed_over_is_the_callers) {
  Scene scene;
  scene.add(pages(0, 2));
  EXPECT(scene.table.hand_over(pages(0, 2)).ok());
  EXPECT(scene.table.held().empty());
  EXPECT_EQ(scene.refs(0), 2u);
  EXPECT(scene.file->dec_ref(pages(0, 2)).ok());
}

TEST(what_cannot_be_leased_stays_the_callers) {
  Scene scene;
  EXPECT(!scene.table.add(pages(6, 7)).ok());  // no page of the file is there
  EXPECT(scene.table.held().empty());
  EXPECT(scene.file->inc_ref(pages(0, 1), 0).ok());
  native_tests::fail_each_allocation([&] { EXPECT(scene.table.add(pages(0, 1)).ok()); },
                                     [&] {
                                       EXPECT(scene.table.held().empty());
                                       EXPECT_EQ(scene.refs(0), 2u);
                                     });
  EXPECT_EQ(scene.refs(0), 2u);
  EXPECT(scene.table.has(pages(0, 1)));
}

TEST(so_many_ranges_are_dropped_at_once) {
  Scene scene;
  for (const uint64_t page : {0, 2, 4}) scene.add(pages(page, page + 1));
  EXPECT(!scene.table.drop_some(0));
  EXPECT_EQ(scene.table.bytes(), 3 * page_size());
  EXPECT(!scene.table.drop_some(2));
  EXPECT_EQ(scene.table.bytes(), page_size());
  EXPECT(scene.table.drop_some(1));
  EXPECT(scene.table.drop_some(0));
  scene.add(pages(0, 1));
  scene.add(pages(0, 1));
  EXPECT(!scene.table.drop_some(1));  // held twice
  EXPECT(scene.table.drop_some(1));
}

TEST(so_many_ranges_are_copied_at_once_each_page_once) {
  Scene scene;
  for (const uint64_t page : {0, 2, 4}) scene.add(pages(page, page + 1));
  scene.add(pages(2, 3));
  LeaseTable copy(scene.file);
  uint64_t from = 0;
  size_t left = 2;
  EXPECT(!*copy.copy_some(scene.table, &from, &left));
  EXPECT_EQ(left, 0u);
  EXPECT_EQ(from, 3 * page_size());
  EXPECT_EQ(copy.bytes(), 2 * page_size());
  EXPECT_EQ(scene.refs(2), 4u);
  left = 5;
  EXPECT(*copy.copy_some(scene.table, &from, &left));
  EXPECT_EQ(left, 4u);
  EXPECT_EQ(from, 5 * page_size());
  EXPECT_EQ(copy.bytes(), 3 * page_size());
  // From the middle of a range.
  LeaseTable whole(scene.file);
  EXPECT(scene.file->inc_ref(scene.all, 0).ok());
  EXPECT(whole.add(scene.all).ok());
  LeaseTable rest(scene.file);
  from = 4 * page_size();
  EXPECT(*rest.copy_some(whole, &from, &left));
  EXPECT_EQ(rest.bytes(), 2 * page_size());
  EXPECT(rest.has(pages(4, 6)));
}

}  // namespace
}  // namespace pgalloc::lease_table_test
