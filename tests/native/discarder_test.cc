// Unpinned memory.

#include "file/discarder.h"

#include <errno.h>

#include <array>
#include <atomic>
#include <functional>
#include <thread>

#include "native/memory.h"
#include "native/rig.h"

namespace pgalloc::discarder_test {
namespace {

using native_tests::FakeKernel;
using native_tests::pages;
using native_tests::Rig;

constexpr uint64_t kAll = UINT64_MAX;

struct Handle : Discardable {
  Handle(Rig& rig, FileRange its_range, DiscardQueue* its_queue = nullptr) : rig(rig) {
    range = its_range;
    queue = its_queue;
  }
  ~Handle() { rig.discarder.forget(*this); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  bool unpin() { return rig.discarder.unpin(*this).ok(); }
  // Whether the contents are still there.
  bool pin(bool in_place = false) {
    rig.discarder.pin(*this, in_place);
    return !std::exchange(discarded, false);
  }

  Rig& rig;
};

// Calls a function at each punch, without the lock.
class Punching {
 public:
  explicit Punching(std::function<void()> called) {
    called_ = std::move(called);
    fake_.calls.fallocate = [](int fd, int mode, off_t offset, off_t length) {
      called_();
      return os::kernel().fallocate(fd, mode, offset, length);
    };
    fake_.begin();
  }

 private:
  static inline std::function<void()> called_;
  FakeKernel fake_;
};

TEST(what_is_unpinned_goes_and_its_handle_is_told) {
  Rig rig;
  Handle handle(rig, rig.allocate(4));
  rig.fill(handle.range, 'x');
  EXPECT(*rig.scanner.update(nullptr));
  EXPECT_EQ(rig.discarder.discard(kAll, kAll).bytes, 0u);  // pinned
  EXPECT(handle.unpin());
  EXPECT(handle.unpin());  // is already
  EXPECT(handle.pin());
  EXPECT(rig.all(handle.range, 'x'));

  EXPECT(handle.unpin());
  EXPECT(rig.discarder.next_order().has_value());
  const auto discarded = rig.discarder.discard(kAll, kAll);
  EXPECT_EQ(discarded.bytes, 4 * page_size());
  EXPECT_EQ(discarded.given_back, 4 * page_size());
  EXPECT_EQ(*rig.file->stored_bytes(), 0u);
  EXPECT_EQ(rig.state.ledger.snapshot().sum(), 0u);
  EXPECT_EQ(rig.refs(0), 1u);
  EXPECT_EQ(rig.discarder.next_order(), std::nullopt);
  EXPECT(!handle.pin());
  EXPECT(handle.pin());
  EXPECT(rig.all(handle.range, '\0'));
  EXPECT_EQ(rig.stats().discards, 1u);
  EXPECT_EQ(rig.stats().discarded_bytes, 4 * page_size());
}

TEST(pages_that_another_handle_has_pinned_stay) {
  Rig rig;
  Handle whole(rig, rig.allocate(4));
  EXPECT(rig.references.inc_ref(pages(3, 4), 0).ok());
  Handle part(rig, pages(3, 4));
  rig.fill(whole.range, 'x');
  EXPECT(whole.unpin());
  EXPECT_EQ(rig.discarder.discard(kAll, kAll).bytes, 0u);
  EXPECT(rig.all(whole.range, 'x'));
  EXPECT(part.unpin());
  EXPECT_EQ(rig.discarder.discard(kAll, kAll).bytes, 4 * page_size());
  EXPECT(!part.pin());
  EXPECT(!whole.pin());
}

TEST(more_handles_than_references_cannot_be_unpinned) {
  Rig rig;
  Handle one(rig, rig.allocate(1));
  Handle other(rig, one.range);
  EXPECT(one.unpin());
  EXPECT_EQ(rig.discarder.unpin(other).code(), ErrorCode::kRefCount);
  EXPECT(!other.unpinned && other.list == nullptr);
}

TEST(a_batch_owns_a_reference_while_it_punches) {
  Rig rig;
  Handle handle(rig, rig.allocate(2));
  rig.fill(handle.range, 'x');
  EXPECT(handle.unpin());
  int punches = 0;
  {
    const Punching punching([&] {
      ++punches;
      EXPECT(rig.discarder.discarding());
      EXPECT_EQ(rig.verify(), std::nullopt);
      EXPECT_EQ(rig.refs(0), 2u);
      // The last handle ends: the pages must not reach a new owner.
      EXPECT(rig.references.end_handle(handle).ok());
      EXPECT_EQ(rig.refs(0), 1u);
      EXPECT_EQ(rig.allocate(2), pages(2, 4));
    });
    EXPECT_EQ(rig.discarder.discard(kAll, kAll).bytes, 2 * page_size());
  }
  EXPECT_EQ(punches, 1);
  EXPECT(!rig.discarder.discarding());
  EXPECT_EQ(rig.refs(0), 0u);
  const FileLock lock(rig.state);
  EXPECT_EQ(rig.state.pages.waste_bytes(), 2 * page_size());
}

TEST(pinning_and_sharing_wait_for_the_punch) {
  for (const bool pins : {true, false}) {
    Rig rig;
    Handle handle(rig, rig.allocate(2));
    rig.fill(handle.range, 'x');
    EXPECT(handle.unpin());
    std::atomic<bool> begun{false};
    std::atomic<bool> over{false};
    std::thread other;
    {
      const Punching punching([&] {
        other = std::thread([&] {
          begun = true;
          if (pins) {
            EXPECT(!handle.pin());
          } else {
            EXPECT(rig.references.inc_ref(handle.range, 0).ok());
          }
          over = true;
        });
        while (!begun) std::this_thread::yield();
        for (int i = 0; i < 1000 && !over; ++i) std::this_thread::yield();
        EXPECT(!over);
      });
      EXPECT_EQ(rig.discarder.discard(kAll, kAll).bytes, 2 * page_size());
    }
    other.join();
    EXPECT_EQ(rig.refs(0), pins ? 1u : 2u);
  }
}

TEST(nothing_is_discarded_between_hold_and_resume) {
  Rig rig;
  Handle handle(rig, rig.allocate(2));
  rig.fill(handle.range, 'x');
  EXPECT(handle.unpin());
  rig.discarder.hold();
  rig.discarder.hold();
  rig.discarder.resume();
  EXPECT_EQ(rig.discarder.discard(kAll, kAll).bytes, 0u);
  EXPECT_EQ(rig.discarder.sweep(kAll, /*waiting=*/true), 0u);
  EXPECT_EQ(rig.discarder.next_order(), std::nullopt);
  EXPECT(rig.all(handle.range, 'x'));
  rig.discarder.resume();
  EXPECT_EQ(rig.discarder.discard(kAll, kAll).bytes, 2 * page_size());
}

TEST(with_manual_zeroing_nothing_is_discarded) {
  Rig rig({.manual_zeroing = true});
  Handle handle(rig, rig.allocate(2));
  rig.fill(handle.range, 'x');
  EXPECT(handle.unpin());
  EXPECT_EQ(rig.discarder.discard(kAll, kAll).bytes, 0u);
  EXPECT_EQ(rig.discarder.sweep(kAll, true), 0u);
  EXPECT(handle.pin());
}

TEST(a_sweep_finds_what_was_written_after_a_discard) {
  Rig rig;
  Handle discarded(rig, rig.allocate(4));
  Handle waiting(rig, rig.allocate(4));
  EXPECT(discarded.unpin());
  EXPECT_EQ(rig.discarder.discard(kAll, kAll).bytes, 4 * page_size());
  EXPECT_EQ(rig.discarder.sweep(kAll, false), 0u);
  rig.fill(pages(1, 3), 'x');
  rig.fill(waiting.range, 'y');
  EXPECT(waiting.unpin());
  const uint64_t before = rig.stats().discarded_bytes;
  EXPECT_EQ(rig.discarder.sweep(kAll, /*waiting=*/false), 2 * page_size());
  EXPECT(rig.all(discarded.range, '\0'));
  EXPECT(rig.all(waiting.range, 'y'));
  EXPECT_EQ(rig.discarder.sweep(kAll, /*waiting=*/true), 4 * page_size());
  EXPECT_EQ(rig.stats().discarded_bytes, before + 6 * page_size());
  EXPECT(!waiting.pin());
  EXPECT(!discarded.pin());
}

TEST(a_sweep_leaves_what_a_handle_has_pinned) {
  Rig rig;
  Handle one(rig, rig.allocate(2));
  EXPECT(rig.references.inc_ref(one.range, 0).ok());
  Handle other(rig, one.range);
  EXPECT(one.unpin() && other.unpin());
  EXPECT_EQ(rig.discarder.discard(kAll, kAll).bytes, 2 * page_size());
  EXPECT(!other.pin());
  rig.fill(one.range, 'x');
  EXPECT_EQ(rig.discarder.sweep(kAll, true), 0u);
  EXPECT(rig.all(one.range, 'x'));
  EXPECT(other.unpin());
  EXPECT_EQ(rig.discarder.sweep(kAll, true), 2 * page_size());
}

// A keeper of a few ranges: those that were kept first go first.
class FewKept final : public Keeper {
 public:
  explicit FewKept(Rig& rig) : rig_(rig) { rig_.discarder.add_keeper(*this); }
  ~FewKept() { rig_.discarder.remove_keeper(*this); }

  bool keep(FileRange range, uint64_t order) {
    kept_.push_back({range, order});
    return rig_.discarder.begin_keep(range).ok();
  }
  std::optional<uint64_t> next_order() override {
    return kept_.empty() ? std::nullopt : std::optional(kept_.front().second);
  }
  Discarded discard(uint64_t bytes_max, uint64_t order_max) override {
    Discarded all;
    while (all.bytes < bytes_max && !kept_.empty() && kept_.front().second <= order_max) {
      const FileRange range = kept_.front().first;
      kept_.erase(kept_.begin());
      const Discarded one = rig_.discarder.discard_kept({&range, 1});
      all.bytes += range.length();
      all.given_back += one.given_back;
      EXPECT(rig_.references.drop_kept(range).ok());
    }
    return all;
  }
  void before_fork() override {}
  void after_fork_in_parent() override {}

 private:
  Rig& rig_;
  std::vector<std::pair<FileRange, uint64_t>> kept_;
};

TEST(keepers_and_queues_go_by_the_order_of_unpinning) {
  Rig rig;
  FewKept keeper(rig);
  Handle before(rig, rig.allocate(1));
  EXPECT(before.unpin());
  const uint64_t order = *rig.discarder.next_order();
  const FileRange kept = rig.allocate(1);
  rig.fill(kept, 'x');
  EXPECT(keeper.keep(kept, order + 1));
  EXPECT_EQ(*rig.discarder.next_order(), order);
  EXPECT_EQ(rig.discarder.discard(1, order).bytes, page_size());
  EXPECT(!before.pin());
  EXPECT_EQ(*rig.discarder.next_order(), order + 1);
  EXPECT_EQ(rig.discarder.discard(1, order).bytes, 0u);  // what came later
  EXPECT_EQ(rig.discarder.sweep(kAll, /*waiting=*/false), 0u);
  const auto discarded = rig.discarder.discard(1, order + 1);
  EXPECT_EQ(discarded.bytes, page_size());
  EXPECT_EQ(discarded.given_back, page_size());
  EXPECT(!rig.discarder.next_order().has_value());
}

TEST(a_keeper_goes_before_what_is_unpinned_later) {
  Rig rig;
  FewKept keeper(rig);
  EXPECT(keeper.keep(rig.allocate(2), 0));
  Handle later(rig, rig.allocate(1));
  EXPECT(later.unpin());
  EXPECT_EQ(*rig.discarder.next_order(), 0u);
  EXPECT_EQ(rig.discarder.discard(1, kAll).bytes, 2 * page_size());
  EXPECT(later.pin());
}

TEST(what_is_kept_is_discarded_by_its_keeper_only) {
  Rig rig;
  FewKept keeper(rig);
  const FileRange kept = rig.allocate(2);
  rig.fill(kept, 'x');
  EXPECT(keeper.keep(kept, 7));
  EXPECT_EQ(rig.discarder.begin_keep(kept).code(), ErrorCode::kRefCount);
  Handle other(rig, kept);  // a second handle
  EXPECT(rig.references.inc_ref(kept, 0).ok());
  EXPECT(other.unpin());
  EXPECT_EQ(rig.discarder.discard_kept({&kept, 1}).bytes, 0u);  // there is another handle
  EXPECT(rig.all(kept, 'x'));
  EXPECT(other.pin());
  EXPECT(rig.references.dec_ref(kept).ok());
  EXPECT_EQ(rig.discarder.sweep(kAll, /*waiting=*/true), 2 * page_size());  // by its keeper
  EXPECT(!rig.discarder.next_order().has_value());
}

TEST(of_neighbours_those_go_that_no_other_has) {
  Rig rig;
  const FileRange kept = rig.allocate(6);
  rig.fill(kept, 'x');
  const std::array ranges{pages(0, 2), pages(2, 4), pages(4, 6)};
  for (const FileRange& range : ranges) EXPECT(rig.discarder.begin_keep(range).ok());
  EXPECT(rig.references.inc_ref(ranges[1], 0).ok());
  int punches = 0;
  {
    const Punching punching([&] { ++punches; });
    const auto discarded = rig.discarder.discard_kept(ranges);
    EXPECT_EQ(discarded.bytes, 4 * page_size());
    EXPECT_EQ(discarded.given_back, 4 * page_size());
  }
  EXPECT_EQ(punches, 2);
  EXPECT(rig.all(ranges[0], '\0') && rig.all(ranges[1], 'x') && rig.all(ranges[2], '\0'));
  EXPECT(rig.references.dec_ref(ranges[1]).ok());
  rig.fill(kept, 'x');
  {
    const Punching punching([&] { ++punches; });
    EXPECT_EQ(rig.discarder.discard_kept(ranges).bytes, 6 * page_size());
  }
  EXPECT_EQ(punches, 3);  // neighbours go in one step
  EXPECT(rig.references.drop_kept(kept).ok());
}

// What a keeper does, it does before hold() returns, or after resume(): also what is no punch.
TEST(holding_waits_for_a_keeper_that_is_being_asked) {
  struct Slow final : Keeper {
    explicit Slow(Rig& rig) : rig(rig) { rig.discarder.add_keeper(*this); }
    ~Slow() { rig.discarder.remove_keeper(*this); }
    std::optional<uint64_t> next_order() override { return done ? std::nullopt : std::optional(0); }
    Discarded discard(uint64_t, uint64_t) override {
      std::atomic<bool> begun{false};
      other = std::thread([&] {
        begun = true;
        rig.discarder.hold();
        held = true;
      });
      while (!begun) std::this_thread::yield();
      for (int i = 0; i < 1000 && !held; ++i) std::this_thread::yield();
      EXPECT(!held);
      done = true;
      return {.bytes = page_size()};
    }
    void before_fork() override {}
    void after_fork_in_parent() override {}
    Rig& rig;
    std::atomic<bool> held{false};
    std::thread other;
    bool done = false;
  };
  for (const bool sweeps : {false, true}) {
    Rig rig;
    Slow keeper(rig);
    if (sweeps) {
      (void)rig.discarder.sweep(1, /*waiting=*/true);
    } else {
      EXPECT_EQ(rig.discarder.discard(1, kAll).bytes, page_size());
    }
    keeper.other.join();
    EXPECT(keeper.held);
    rig.discarder.resume();
  }
}

TEST(keepers_discard_nothing_while_discards_are_held) {
  Rig rig;
  FewKept keeper(rig);
  EXPECT(keeper.keep(rig.allocate(1), 0));
  rig.discarder.hold();
  EXPECT(!rig.discarder.next_order().has_value());
  EXPECT_EQ(rig.discarder.discard(kAll, kAll).bytes, 0u);
  EXPECT_EQ(rig.discarder.sweep(kAll, /*waiting=*/true), 0u);
  rig.discarder.resume();
  EXPECT_EQ(rig.discarder.discard(kAll, kAll).bytes, page_size());
}

TEST(dropping_kept_pages_leaves_them_to_those_who_have_them) {
  Rig rig;
  const FileRange kept = rig.allocate(2);
  EXPECT(rig.discarder.begin_keep(kept).ok());
  EXPECT(rig.references.inc_ref(kept, 0).ok());
  EXPECT(rig.references.drop_kept(kept).ok());
  EXPECT_EQ(rig.references.drop_kept(kept).code(), ErrorCode::kRefCount);
  EXPECT(rig.discarder.begin_keep(kept).ok());  // by another keeper
  EXPECT(rig.references.drop_kept(kept).ok());
  EXPECT(!rig.references.dec_ref(kept).ok());  // it is gone
}

// Parts of them may be another's.
TEST(dropping_kept_pages_ends_that_all_of_them_are_kept) {
  for (int64_t left = 0;; ++left) {
    Rig rig;
    const FileRange kept = rig.allocate(4);
    EXPECT(rig.discarder.begin_keep(kept).ok());
    EXPECT(rig.references.inc_ref(pages(1, 2), 0).ok());
    EXPECT(rig.references.inc_ref(pages(3, 4), 0).ok());
    native_tests::allocations_left = left;
    bool dropped = false;
    try {
      dropped = rig.references.drop_kept(kept).ok();
    } catch (const std::bad_alloc&) {  // NOLINT
    }
    const bool failed = native_tests::allocations_left < 0;
    native_tests::allocations_left = -1;
    EXPECT(dropped || failed);
    if (!dropped) EXPECT(rig.references.drop_kept(kept).ok());
    {
      const FileLock lock(rig.state);
      EXPECT(rig.state.pages.kept().empty());
    }
    EXPECT_EQ(rig.refs(0), 0u);
    EXPECT_EQ(rig.refs(1), 1u);
    EXPECT_EQ(rig.refs(3), 1u);
    if (!failed) return;
  }
}

TEST(pages_that_are_kept_are_no_handles_when_a_process_forks) {
  Rig rig;
  const FileRange kept = rig.allocate(2);
  const FileRange owned = rig.allocate(1);
  EXPECT(rig.discarder.begin_keep(kept).ok());
  References::Counts leases;
  {
    FileLock lock(rig.state);
    rig.references.lease_pinned(&leases);
  }
  EXPECT_EQ(leases.size(), 1u);
  EXPECT(leases.front().first == owned);
  EXPECT(rig.discarder.end_keep(kept).ok());
  {
    FileLock lock(rig.state);
    rig.references.undo_leases(leases, 0);
    rig.references.lease_pinned(&leases);
    uint64_t bytes = 0;
    for (const auto& [range, handles] : leases) bytes += range.length();
    EXPECT_EQ(bytes, 3 * page_size());
    rig.references.undo_leases(leases, 0);
  }
}

TEST(a_batch_takes_so_many_bytes_and_neighbours_in_one_punch) {
  Rig rig;
  std::vector<std::unique_ptr<Handle>> handles;
  for (int i = 0; i < 8; ++i) handles.push_back(std::make_unique<Handle>(rig, rig.allocate(2)));
  rig.fill(pages(0, 16), 'x');
  for (const int i : {2, 0, 1, 7, 5, 6, 3, 4}) EXPECT(handles[i]->unpin());
  int punches = 0;
  const Punching punching([&] { ++punches; });
  EXPECT_EQ(rig.discarder.discard(6 * page_size(), kAll).bytes, 6 * page_size());
  EXPECT_EQ(punches, 1);
  EXPECT(rig.all(pages(0, 6), '\0') && rig.all(pages(6, 16), 'x'));
}

TEST(where_the_kernel_does_not_count_what_the_file_lost_counts) {
  Rig rig;
  Handle written(rig, rig.allocate(2));
  Handle committed(rig, rig.allocate(2));
  Handle empty(rig, rig.allocate(2));
  rig.fill(written.range, 'x');
  EXPECT(rig.file->commit(committed.range).ok());
  FakeKernel fake;
  fake.calls.cachestat = [](int, uint64_t, uint64_t, os::CacheStat*) { return errno = ENOSYS, -1; };
  fake.begin();
  for (Handle* handle : {&written, &committed, &empty}) {
    EXPECT(handle->unpin());
    const auto discarded = rig.discarder.discard(kAll, kAll);
    EXPECT_EQ(discarded.bytes, 2 * page_size());
    EXPECT_EQ(discarded.given_back, handle == &empty ? 0u : 2 * page_size());
  }
}

TEST(pages_whose_contents_are_on_their_way_stay) {
  Rig rig;
  Handle handle(rig, rig.allocate(2));
  {
    const FileLock lock(rig.state);
    rig.state.pages.pending().expect(pages(0, 1));
  }
  EXPECT(handle.unpin());
  EXPECT_EQ(rig.discarder.discard(kAll, kAll).bytes, 0u);
  const FileLock lock(rig.state);
  rig.state.pages.pending().clear();  // there is no image that they could come from
}

}  // namespace
}  // namespace pgalloc::discarder_test
