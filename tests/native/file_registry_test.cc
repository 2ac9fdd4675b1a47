// All files together: what goes first, and that what was never touched keeps nothing from going.

#include "file/file_registry.h"

#include <array>
#include <chrono>
#include <deque>

#include "file/memory_file.h"
#include "native/support.h"

namespace pgalloc::file_registry_test {
namespace {

// A file whose allocations can go as soon as they are made.
class File {
 public:
  ~File() {
    for (Discardable& entry : entries_) EXPECT(file_->end_handle(entry).ok());
    EXPECT(file_->close().ok());
  }

  // Unpins a new allocation of a page. Only what is written to takes memory.
  const Discardable& unpin_page(bool written) { return unpin(page_size(), written); }
  const Discardable& unpin(uint64_t length, bool written) {
    entries_.emplace_back().range = *file_->allocate({.length = length}, false);
    if (written) EXPECT(file_->write(entries_.back().range.start, "x", 1).ok());
    EXPECT(file_->unpin(entries_.back()).ok());
    return entries_.back();
  }

 private:
  const std::shared_ptr<MemoryFile> file_ = std::move(*MemoryFile::create({}, {}));
  std::deque<Discardable> entries_;
};

DiscardSource::Discarded discard(uint64_t bytes) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  return FileRegistry::all().discard(bytes, deadline);
}

bool waits(const Discardable& entry) { return entry.list != nullptr; }

TEST(what_was_unpinned_first_goes_first_whichever_file_it_is_in) {
  std::array<File, 3> files;
  std::vector<const Discardable*> in_order;
  for (const size_t file : {0, 2, 1, 1, 0, 2, 2, 1, 0, 1, 2, 0}) {
    in_order.push_back(&files[file].unpin_page(true));
  }
  for (size_t gone = 1; gone <= in_order.size(); ++gone) {
    EXPECT_EQ(discard(page_size()).given_back, page_size());
    for (size_t i = 0; i < in_order.size(); ++i) EXPECT_EQ(waits(*in_order[i]), i >= gone);
  }
  EXPECT(discard(page_size()).exhausted);
}

TEST(after_eight_batches_without_a_page_it_is_no_use) {
  constexpr uint64_t kBatch = 8 << 20;
  for (const int untouched : {7, 8}) {
    File file;
    for (int i = 0; i < untouched; ++i) file.unpin(kBatch, false);
    const Discardable& written = file.unpin(kBatch, true);
    const auto discarded = discard(kBatch);
    EXPECT_EQ(discarded.given_back, untouched == 7 ? page_size() : 0);
    EXPECT_EQ(discarded.fruitless, untouched == 8);
    EXPECT_EQ(waits(written), untouched == 8);
  }
}

TEST(what_goes_between_makes_batches_without_a_page_start_anew) {
  constexpr uint64_t kBatch = 8 << 20;
  File file;
  for (int i = 0; i < 7; ++i) file.unpin(kBatch, false);
  file.unpin(kBatch, true);
  for (int i = 0; i < 7; ++i) file.unpin(kBatch, false);
  const Discardable& last = file.unpin(kBatch, true);
  const auto discarded = discard(kBatch);
  EXPECT_EQ(discarded.given_back, 2 * page_size());
  EXPECT(discarded.exhausted && !discarded.fruitless);
  EXPECT(!waits(last));
}

TEST(many_untouched_pages_are_one_batch) {
  File file;
  for (int i = 0; i < 100; ++i) file.unpin_page(false);
  const Discardable& written = file.unpin_page(true);
  EXPECT_EQ(discard(uint64_t{1} << 20).given_back, page_size());
  EXPECT(!waits(written));
}

}  // namespace
}  // namespace pgalloc::file_registry_test
