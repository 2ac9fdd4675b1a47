// All files together: what goes first, and that what was never touched keeps nothing from going.

#include "file/file_registry.h"

#include <array>
#include <atomic>
#include <chrono>
#include <deque>
#include <thread>

#include "file/memory_file.h"
#include "file/registered_file.h"
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

// A file with a thread that gives memory back before it ends, as one that loads an image does.
class Loading final : public RegisteredFile {
 public:
  Status start_threads() override {
    thread_ = std::thread([this] {
      ends_.wait(false);
      (void)discard(page_size());
      FileRegistry::all().start_evictions();
      (void)FileRegistry::all().sweep(page_size(), true);
    });
    return {};
  }
  void stop_threads() override {
    ends_ = true;
    ends_.notify_one();
    if (thread_.joinable()) thread_.join();
    ends_ = false;
  }
  void restart_threads() override { (void)start_threads(); }
  void use_loaders(unsigned) override {}

  uint64_t id() const override { return 0; }
  std::shared_ptr<RegisteredFile> share() override { return nullptr; }
  bool begin_use() override { return false; }
  void end_use() override {}
  const Ledger& ledger() const override { return real_->ledger(); }
  Discarder& discarder() override { return real_->discarder(); }
  bool has_unpinned() const override { return false; }
  uint64_t release_kept(Time) override { return 0; }
  void start_evictions_under_pressure() override {}
  bool wait_for_reclaim(std::optional<Time>) override { return true; }

 private:
  const std::shared_ptr<MemoryFile> real_ = std::move(*MemoryFile::create({}, {}));
  std::atomic<bool> ends_{false};
  std::thread thread_;
};

TEST(a_thread_that_ends_may_give_memory_back) {
  Loading file;
  EXPECT(FileRegistry::add(&file).ok());
  FileRegistry::park_threads();
  FileRegistry::resume_threads();
  FileRegistry::remove(&file);
}

}  // namespace
}  // namespace pgalloc::file_registry_test
