// Section J, with an image made by hand.

#include "file/loader.h"

#include <errno.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <set>
#include <thread>

#include "native/rig.h"
#include "os/thread.h"

namespace pgalloc::loader_test {
namespace {

using native_tests::in_a_minute;
using native_tests::is_asleep;
using native_tests::kPast;
using native_tests::pages;
using native_tests::Rig;
using native_tests::threads_of_process;

// Extents of four pages each, of which the first three are stored: those of extent i are all 'a' + i.
class Source final : public ExtentSource {
 public:
  explicit Source(uint64_t extents, image::Encoding encoding = image::Encoding::kRaw) {
    for (uint64_t i = 0; i < extents; ++i) {
      heads_.push_back({.range = pages(4 * i, 4 * i + 4),
                        .offset = i,
                        .encoding = encoding,
                        .stored_length = encoding == image::Encoding::kRaw ? 3 * page_size() : 7});
      for (size_t page = 0; page < 3; ++page) heads_.back().map.set(page);
      index_.push_back(image::index_entry(heads_.back()));
    }
  }
  const std::vector<image::IndexEntry>& index() const override { return index_; }
  bool has_encoded_extents() const override {
    return heads_.front().encoding != image::Encoding::kRaw;
  }
  size_t first_extent_after(uint64_t offset) const override {
    return std::min(offset / (4 * page_size()), index_.size());
  }
  Result<image::ExtentHead> read_extent(size_t i, Buffer& buffer) const override {
    read.push_back(i);
    reading(i);
    if (broken.contains(i)) return Status::system_error(EIO, "pread");
    char* const bytes = buffer.reserve(4 * page_size()) + page_size();
    std::memset(bytes, static_cast<char>('a' + i), heads_[i].stored_length);
    return heads_[i];
  }

  mutable std::vector<size_t> read;  // in this order
  std::set<size_t> broken;
  std::function<void(size_t)> reading = [](size_t) {};

 private:
  std::vector<image::ExtentHead> heads_;
  std::vector<image::IndexEntry> index_;
};

// A file whose first pages are those of the source's extents, and pending.
struct Restored : Rig {
  explicit Restored(uint64_t extents, image::Encoding encoding = image::Encoding::kRaw)
      : source(std::make_shared<Source>(extents, encoding)) {
    EXPECT_EQ(allocate(4 * extents), pages(0, 4 * extents));
    EXPECT(loader.begin(source).ok());
    EXPECT(state.incomplete());
  }
  Result<bool> load(FileRange range) { return loader.load(range, in_a_minute(), nullptr); }
  bool arrived(uint64_t extent) {
    return all(pages(4 * extent, 4 * extent + 3), static_cast<char>('a' + extent)) &&
           all(pages(4 * extent + 3, 4 * extent + 4), '\0');
  }
  bool empty(uint64_t extent) { return all(pages(4 * extent, 4 * extent + 4), '\0'); }

  const std::shared_ptr<Source> source;
};

using Order = std::vector<size_t>;

TEST(a_thread_that_needs_a_page_brings_its_extent_and_no_other) {
  Restored rig(4);
  EXPECT_EQ(rig.loader.progress().total_bytes, 16 * page_size());
  EXPECT(*rig.load(pages(9, 10)));
  EXPECT(rig.arrived(2) && rig.empty(0) && rig.empty(1) && rig.empty(3));
  EXPECT_EQ(rig.loader.progress().pending_bytes, 12 * page_size());
  EXPECT(*rig.load(pages(9, 10)));
  EXPECT(*rig.load(pages(3, 5)));
  EXPECT_EQ(rig.source->read, (Order{2, 0, 1}));
  EXPECT(rig.state.incomplete());
  EXPECT(*rig.load(pages(0, 16)));
  EXPECT(!rig.state.incomplete() && !rig.loader.loading());
  EXPECT_EQ(rig.state.ledger.snapshot().sum(), 12 * page_size());  // what arrived is committed
  EXPECT(*rig.load(pages(0, 16)));
  EXPECT_EQ(rig.source->read.size(), 4u);
}

TEST(loaders_take_the_extents_in_order_from_the_last_one_on) {
  Restored rig(4);
  std::unique_ptr<ArrivingExtent> encoded;
  EXPECT(*rig.loader.load_next(&encoded));
  EXPECT(*rig.load(pages(8, 9)));
  while (*rig.loader.load_next(&encoded)) {
  }
  EXPECT_EQ(rig.source->read, (Order{0, 2, 1, 3}));
  for (uint64_t extent = 0; extent < 4; ++extent) EXPECT(rig.arrived(extent));
  EXPECT(!rig.state.incomplete() && encoded == nullptr);
}

TEST(a_thread_of_the_core_loads_everything) {
  Restored rig(16);
  rig.loader.use_threads(1);
  rig.loader.start_threads();
  while (rig.loader.loading()) std::this_thread::yield();
  rig.loader.stop_threads();
  EXPECT_EQ(rig.source->read.size(), 16u);
  for (uint64_t extent = 0; extent < 16; ++extent) EXPECT(rig.arrived(extent));
}

TEST(threads_that_run_are_not_started_again) {
  Restored rig(1);
  rig.loader.use_threads(1);
  std::atomic<bool> reads{false}, may_go_on{false};
  rig.source->reading = [&](size_t) {
    reads = true;
    while (!may_go_on) std::this_thread::yield();
  };
  rig.loader.start_threads();
  while (!reads) std::this_thread::yield();
  const size_t threads = threads_of_process();
  rig.loader.start_threads();
  EXPECT(threads_of_process() <= threads);
  may_go_on = true;
  rig.loader.stop_threads();
  EXPECT(rig.arrived(0));
}

TEST(a_broken_extent_is_an_error_for_its_pages_only) {
  Restored rig(3);
  rig.source->broken = {1};
  std::unique_ptr<ArrivingExtent> encoded;
  while (*rig.loader.load_next(&encoded)) {
  }
  EXPECT(rig.arrived(0) && rig.arrived(2));
  EXPECT(*rig.load(pages(0, 4)));
  EXPECT(*rig.load(pages(8, 12)));
  for (const FileRange range : {pages(4, 5), pages(7, 8), pages(0, 12)}) {
    const auto there = rig.load(range);
    EXPECT(!there.ok() && there.status().error_number() == EIO);
  }
  EXPECT(*rig.loader.load(pages(0, 12), kPast, nullptr, /*ignore_broken=*/true));
  EXPECT_EQ(rig.loader.progress().failed_bytes, 4 * page_size());
  EXPECT(rig.state.incomplete() && !rig.loader.loading());
  EXPECT_EQ(rig.source->read.size(), 3u);  // it is not tried again
  EXPECT_EQ(rig.state.warnings.size(), 1u);

  EXPECT(rig.references.dec_ref(pages(4, 8)).ok());  // the pages go, and the error with them
  EXPECT(!rig.state.incomplete());
}

TEST(what_could_not_be_written_leaves_nothing_behind) {
  Restored rig(2);
  native_tests::FakeKernel fake;
  fake.calls.pwrite = [](int fd, const void* data, size_t size, off_t offset) -> ssize_t {
    (void)os::kernel().pwrite(fd, data, size / 2, offset);
    return errno = ENOSPC, -1;
  };
  fake.begin();
  const auto there = rig.load(pages(0, 1));
  os::use(os::kernel());
  EXPECT(!there.ok() && there.status().error_number() == ENOSPC);
  EXPECT(rig.empty(0));
  EXPECT_EQ(rig.state.ledger.snapshot().sum(), 0u);
  EXPECT(*rig.load(pages(4, 5)));
}

TEST(a_deadline_that_has_passed_loads_nothing) {
  Restored rig(1);
  EXPECT(!*rig.loader.load(pages(0, 1), kPast, nullptr));
  EXPECT(rig.source->read.empty());
}

TEST(encoded_extents_are_handed_out_and_delivered) {
  Restored rig(3, image::Encoding::kZstd);
  std::unique_ptr<ArrivingExtent> encoded;
  EXPECT(!*rig.loader.load(pages(4, 5), in_a_minute(), &encoded));
  EXPECT_EQ(std::string(encoded->encoded().begin(), encoded->encoded().end()), "bbbbbbb");
  EXPECT_EQ(encoded->raw_length(), 3 * page_size());
  EXPECT(!*rig.loader.load(pages(4, 5), kPast, nullptr));  // another thread is at it
  EXPECT(encoded->deliver(std::string(3 * page_size(), 'b')).ok());
  encoded.reset();
  EXPECT(rig.arrived(1));
  EXPECT(*rig.loader.load(pages(4, 5), kPast, nullptr));

  EXPECT(*rig.loader.load_next(&encoded));
  encoded.reset();  // dropped: its pages wait again
  EXPECT_EQ(rig.loader.progress().pending_bytes, 8 * page_size());
  EXPECT(*rig.loader.load_next(&encoded));
  encoded->fail(Status::error(ErrorCode::kSnapshotCorrupt, "no frame"));
  encoded.reset();
  EXPECT_EQ(rig.load(pages(0, 1)).status().code(), ErrorCode::kSnapshotCorrupt);
  EXPECT(*rig.loader.load_next(&encoded));
  EXPECT(encoded->deliver(std::string(3 * page_size(), 'c')).ok());
  encoded.reset();
  EXPECT(rig.arrived(2));
  EXPECT_EQ(rig.source->read, (Order{1, 0, 0, 2}));
}

TEST(pages_that_are_freed_while_they_wait_are_not_loaded) {
  Restored rig(2);
  EXPECT(rig.references.dec_ref(pages(1, 2)).ok());
  EXPECT_EQ(rig.loader.progress().dropped_bytes, page_size());
  EXPECT(*rig.load(pages(0, 1)));
  EXPECT(rig.all(pages(0, 1), 'a') && rig.all(pages(1, 2), '\0') && rig.all(pages(2, 3), 'a'));
  EXPECT(rig.references.dec_ref(pages(4, 8)).ok());
  EXPECT(!rig.state.incomplete() && !rig.loader.loading());
}

TEST(pages_that_are_freed_while_they_arrive_are_reclaimed_afterwards) {
  Restored rig(1);
  rig.source->reading = [&](size_t) {
    EXPECT(rig.references.dec_ref(pages(0, 4)).ok());
    const FileLock lock(rig.state);
    EXPECT_EQ(rig.state.pages.next_waste(), std::nullopt);
  };
  std::unique_ptr<ArrivingExtent> encoded;
  EXPECT(*rig.loader.load_next(&encoded));
  EXPECT(!rig.state.incomplete());
  EXPECT(rig.reclaimer.start().ok());
  EXPECT(rig.wait_for_reclaim());
  EXPECT(rig.empty(0));
  EXPECT_EQ(*rig.file->stored_bytes(), 0u);
}

TEST(decommitted_pages_leave_the_image_or_come_back_to_it) {
  Restored rig(2);
  {
    const FileLock lock(rig.state);
    const auto taken = rig.loader.take_leaving(pages(2, 6));
    EXPECT_EQ(taken, std::vector<FileRange>{pages(2, 6)});
    rig.loader.settle_leaving(taken, /*gone=*/false);
    rig.loader.settle_leaving(rig.loader.take_leaving(pages(0, 2)), /*gone=*/true);
  }
  EXPECT(*rig.load(pages(0, 8)));
  EXPECT(rig.all(pages(0, 2), '\0') && rig.all(pages(2, 3), 'a') && rig.arrived(1));
  EXPECT_EQ(rig.loader.progress().dropped_bytes, 2 * page_size());
}

// A decoder still has the extent, and nothing says any more that it does not arrive.
TEST(a_decommit_that_waits_for_arriving_pages_ends_when_the_file_is_closed) {
  Restored rig(1, image::Encoding::kZstd);
  std::unique_ptr<ArrivingExtent> encoded;
  EXPECT(!*rig.loader.load(pages(0, 1), in_a_minute(), &encoded));
  EXPECT(encoded != nullptr);
  std::atomic<pid_t> thread_id{0};
  std::thread other([&] {
    thread_id = os::thread_id();
    const FileLock lock(rig.state);
    EXPECT(rig.loader.take_leaving(pages(0, 2)).empty());
  });
  while (thread_id == 0 || !is_asleep(thread_id)) std::this_thread::yield();
  {
    const FileLock lock(rig.state);
    rig.state.gate.fetch_or(FileState::kClosed);
    rig.loader.notify_waiters();
  }
  other.join();
  encoded.reset();
}

// What the loaders yield to.
TEST(a_thread_that_needs_pages_is_a_waiter_until_they_are_there) {
  Restored rig(2);
  int waiters = 0;
  rig.source->reading = [&](size_t) { waiters = rig.loader.waiters(); };
  EXPECT(*rig.load(pages(0, 1)));
  EXPECT_EQ(waiters, 1);
  EXPECT_EQ(rig.loader.waiters(), 0);
  std::unique_ptr<ArrivingExtent> encoded;
  EXPECT(*rig.loader.load_next(&encoded));
  EXPECT_EQ(waiters, 0);
}

TEST(loaders_yield_to_threads_that_need_pages) {
  Restored rig(2);
  rig.loader.yield_for(std::chrono::hours(1));
  std::atomic<bool> ended{false};
  std::thread other;
  int waiters = 0;
  rig.source->reading = [&](size_t extent) {
    waiters = rig.loader.waiters();
    if (extent > 0) return;
    std::atomic<pid_t> thread_id{0};
    other = std::thread([&] {
      thread_id = os::thread_id();
      std::unique_ptr<ArrivingExtent> encoded;
      EXPECT(*rig.loader.load_next(&encoded));
      ended = true;
    });
    while (!ended && (thread_id == 0 || !is_asleep(thread_id))) std::this_thread::yield();
  };
  EXPECT(*rig.load(pages(0, 1)));
  other.join();
  EXPECT_EQ(rig.source->read, (Order{0, 1}));
  EXPECT_EQ(waiters, 0);
}

// As if threads needed pages one after the other, without end.
TEST(loaders_bring_everything_else_while_a_thread_waits_all_the_time) {
  constexpr uint64_t kExtents = 6;
  Restored rig(kExtents);
  rig.loader.use_threads(1);
  int waiters = 0;
  rig.source->reading = [&](size_t extent) {
    if (extent != 2) return;
    waiters = rig.loader.waiters();
    rig.loader.start_threads();
    while (rig.loader.progress().pending_bytes > 4 * page_size()) std::this_thread::yield();
  };
  EXPECT(*rig.load(pages(8, 9)));
  rig.loader.stop_threads();
  EXPECT_EQ(waiters, 1);
  for (uint64_t extent = 0; extent < kExtents; ++extent) EXPECT(rig.arrived(extent));
}

TEST(two_threads_that_need_a_page_read_its_extent_once) {
  Restored rig(1);
  std::thread other;
  rig.source->reading = [&](size_t) {
    other = std::thread([&] { EXPECT(*rig.load(pages(2, 3))); });
    while (rig.loader.waiters() < 2) std::this_thread::yield();
  };
  EXPECT(*rig.load(pages(0, 1)));
  other.join();
  EXPECT_EQ(rig.source->read, Order{0});
}

TEST(an_extent_of_pages_that_are_not_in_use_is_refused) {
  Rig rig;
  rig.allocate(4);
  EXPECT_EQ(rig.loader.begin(std::make_shared<Source>(2)).code(), ErrorCode::kSnapshotCorrupt);
  const FileLock lock(rig.state);
  rig.state.pages.clear();
}

TEST(a_whole_extent_is_written_and_booked) {
  Rig rig;
  rig.allocate(4);
  const Source source(1);
  Buffer buffer;
  const auto head = source.read_extent(0, buffer);
  EXPECT(rig.loader.write_restored(*head, buffer.data() + page_size()).ok());
  EXPECT(rig.all(pages(0, 3), 'a') && rig.all(pages(3, 4), '\0'));
  EXPECT_EQ(rig.state.ledger.snapshot().sum(), 3 * page_size());
}

TEST(closing_ends_all_loading) {
  Restored rig(2, image::Encoding::kZstd);
  std::unique_ptr<ArrivingExtent> encoded;
  EXPECT(*rig.loader.load_next(&encoded));
  rig.state.gate.fetch_or(FileState::kClosed);
  EXPECT_EQ(rig.load(pages(4, 5)).status().code(), ErrorCode::kClosed);
  std::unique_ptr<ArrivingExtent> another;
  EXPECT(!*rig.loader.load_next(&another));
  {
    const FileLock lock(rig.state);
    rig.state.pages.clear();
    rig.loader.clear();
  }
  EXPECT(encoded->deliver(std::string(3 * page_size(), 'a')).ok());  // too late, and no harm
  EXPECT(rig.empty(0));
}

TEST(verify_finds_a_gate_that_does_not_say_whether_pages_wait) {
  Restored rig(1);
  EXPECT_EQ(rig.verify(), std::nullopt);
  rig.state.gate.fetch_xor(FileState::kIncomplete);
  EXPECT_EQ(rig.verify(), "the gate does not say whether pages wait");
  rig.state.gate.fetch_xor(FileState::kIncomplete);
  EXPECT(*rig.load(pages(0, 4)));
  EXPECT_EQ(rig.verify(), std::nullopt);
}

}  // namespace
}  // namespace pgalloc::loader_test
