// The epoch of each page of row H3.

#include "file/scan_changes.h"

#include "native/support.h"

namespace pgalloc::scan_changes_test {
namespace {

using native_tests::pages;
using Ranges = std::vector<FileRange>;

Ranges unchanged(const ScanChanges& changes, FileRange range) {
  Ranges parts;
  changes.visit_unchanged(range, [&](FileRange part) { parts.push_back(part); });
  return parts;
}

TEST(nothing_is_recorded_between_scans) {
  ScanChanges changes;
  changes.note(pages(0, 9));
  EXPECT_EQ(unchanged(changes, pages(0, 9)), Ranges{pages(0, 9)});
  changes.begin_batch();
  changes.note(pages(0, 9));
  EXPECT_EQ(unchanged(changes, pages(0, 9)), Ranges{});
  changes.end_scan();
  changes.note(pages(0, 9));
  EXPECT_EQ(unchanged(changes, pages(0, 9)), Ranges{pages(0, 9)});
}

TEST(what_changed_is_cut_out) {
  ScanChanges changes;
  changes.begin_batch();
  changes.note(pages(2, 4));
  changes.note(pages(3, 5));
  changes.note(pages(7, 8));
  EXPECT_EQ(unchanged(changes, pages(0, 10)), (Ranges{pages(0, 2), pages(5, 7), pages(8, 10)}));
  EXPECT_EQ(unchanged(changes, pages(2, 5)), Ranges{});
  EXPECT_EQ(unchanged(changes, pages(4, 6)), Ranges{pages(5, 6)});
}

TEST(a_batch_begins_with_nothing_changed) {
  ScanChanges changes;
  changes.begin_batch();
  changes.note(pages(0, 1));
  changes.begin_batch();
  EXPECT_EQ(unchanged(changes, pages(0, 2)), Ranges{pages(0, 2)});
}

TEST(every_change_is_counted) {
  ScanChanges changes;
  changes.count();
  changes.note(pages(0, 1));
  EXPECT_EQ(changes.number(), 2u);
  changes.begin_batch();
  changes.note(pages(0, 1));
  changes.end_scan();
  EXPECT_EQ(changes.number(), 3u);
}

TEST(beyond_so_many_ranges_everything_counts_as_changed) {
  constexpr uint64_t kRanges = 65'536;
  ScanChanges changes;
  changes.begin_batch();
  for (uint64_t i = 0; i < kRanges; ++i) changes.note(pages(2 * i, 2 * i + 1));
  EXPECT_EQ(unchanged(changes, pages(0, 4)), (Ranges{pages(1, 2), pages(3, 4)}));
  changes.note(pages(2 * kRanges, 2 * kRanges + 1));
  EXPECT_EQ(unchanged(changes, pages(0, 4 * kRanges)), Ranges{});
  changes.note(pages(1, 2));  // still all of it
  EXPECT_EQ(unchanged(changes, pages(0, 4 * kRanges)), Ranges{});
}

}  // namespace
}  // namespace pgalloc::scan_changes_test
