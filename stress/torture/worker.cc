#include "torture/worker.h"

#include <algorithm>
#include <utility>

#include "torture/verdict.h"

namespace pgalloc::torture {

void Counts::add(const Counts& other) {
  operations += other.operations;
  allocations += other.allocations;
  refusals += other.refusals;
  pages_stamped += other.pages_stamped;
  pages_left_blank += other.pages_left_blank;
  pages_checked += other.pages_checked;
  shared += other.shared;
  passed_on += other.passed_on;
  decommits += other.decommits;
  shelved += other.shelved;
}

void Worker::run(std::chrono::steady_clock::time_point until, uint64_t operations) {
  for (uint64_t i = 0; i < operations && std::chrono::steady_clock::now() < until; ++i) step();
}

void Worker::free_all() {
  receive();
  while (!pool_.empty()) free(pool_.size() - 1);
}

void Worker::step() {
  ++counts_.operations;
  receive();
  while (pool_bytes_ > arena_.bytes_per_worker) free(random_.below(pool_.size()));
  const uint64_t dice = random_.below(100);
  if (dice < 40 || pool_.empty()) return allocate();

  const size_t index = random_.below(pool_.size());
  if (dice < 55) return check(pool_[index], "at rest");
  if (dice < 62) return share(pool_[index]);
  if (dice < 66) return decommit(pool_[index]);
  if (dice < 68) return stamp_blank(pool_[index]);
  if (dice < 74) return pass_on(index);
  if (dice < 80) return put_on_shelf(index);
  if (dice < 84) {
    if (const auto holding = arena_.shelf.take(random_)) keep(*holding);
    return;
  }
  free(index);
}

void Worker::allocate() {
  constexpr AllocationMode kModes[] = {AllocationMode::kAllocateOnly,
                                       AllocationMode::kAllocateAndCommit,
                                       AllocationMode::kAllocateAndWritePopulate};
  const AllocateRequest request{
      .length = random_length(),
      .kind = static_cast<MemoryKind>(random_.below(5)),
      .direction = random_.one_in(2) ? Direction::kTopDown : Direction::kBottomUp,
      .mode = kModes[random_.one_in(4) ? random_.below(3) : 0],
      .memcg_id = static_cast<uint32_t>(random_.below(4)),
      .huge = random_.one_in(2) ? HugeWish::kAsked : HugeWish::kNone,
  };
  const Result<FileRange> range = arena_.source.allocate(request);
  if (!range.ok()) {
    if (range.status().code() != ErrorCode::kOutOfMemory) expect_ok(range.status(), "allocate");
    ++counts_.refusals;
    arena_.file.evictables()->start_all();
    const uint64_t room = pool_bytes_ - std::min(pool_bytes_, request.length);
    while (pool_bytes_ > room) free(random_.below(pool_.size()));
    return;
  }
  ++counts_.allocations;
  Holding holding{*range, std::nullopt};
  if (random_.one_in(4)) {
    check(holding, "on arrival");
    counts_.pages_left_blank += pages_in(*range);
  } else {
    expect_zero(arena_.file, *range, "on arrival");
    holding.stamp = Stamp{number_, sequence_++};
    stamp(holding);
  }
  keep(holding);
}

void Worker::check(const Holding& holding, const char* when) {
  expect_intact(arena_.file, holding, when);
  counts_.pages_checked += pages_in(holding.range);
}

// Another reference on a part of it, for another thread.
void Worker::share(const Holding& holding) {
  const Holding part{random_part(holding.range), holding.stamp};
  expect_ok(arena_.file.inc_ref(part.range, 0), "inc_ref");
  ++counts_.shared;
  if (!arena_.mailboxes[random_.below(arena_.mailboxes.size())].put(part)) keep(part);
}

// A part, which gets its stamps back; or all, which stays blank.
void Worker::decommit(Holding& holding) {
  const bool stays_blank = random_.one_in(2);
  const Holding part{stays_blank ? holding.range : random_part(holding.range), holding.stamp};
  if (!sole_owner(part.range)) return;
  check(part, "before decommit");
  expect_ok(arena_.file.decommit(part.range), "decommit");
  ++counts_.decommits;
  if (stays_blank) {
    holding.stamp.reset();
    check(holding, "after decommit");
    counts_.pages_left_blank += pages_in(holding.range);
  } else if (holding.stamp) {
    expect_zero(arena_.file, part.range, "after decommit");
    stamp(part);
  }
}

void Worker::stamp_blank(Holding& holding) {
  if (holding.stamp || !sole_owner(holding.range)) return;
  expect_zero(arena_.file, holding.range, "after it was left blank");
  holding.stamp = Stamp{number_, sequence_++};
  stamp(holding);
}

void Worker::pass_on(size_t index) {
  if (!arena_.mailboxes[random_.below(arena_.mailboxes.size())].put(pool_[index])) return;
  remove(index);
  ++counts_.passed_on;
}

void Worker::put_on_shelf(size_t index) {
  arena_.shelf.put(random_, remove(index));
  ++counts_.shelved;
}

// All at once, or in two parts.
void Worker::free(size_t index) {
  const Holding holding = remove(index);
  check(holding, "before it was freed");
  const uint64_t cut = random_.one_in(3) ? random_part(holding.range).start : holding.range.start;
  if (holding.range.start < cut) arena_.source.drop({holding.range.start, cut});
  arena_.source.drop({cut, holding.range.end});
}

void Worker::receive() {
  for (const Holding& holding : arena_.mailboxes[number_].take_all()) {
    check(holding, "when it was passed on");
    keep(holding);
  }
}

// If the one reference is ours, only we could add another: no other thread looks at these pages.
bool Worker::sole_owner(FileRange range) const {
  const Result<bool> unique = arena_.file.has_unique_ref(range);
  if (!unique.ok()) expect_ok(unique.status(), "has_unique_ref");
  return *unique;
}

void Worker::stamp(const Holding& holding) {
  write_stamps(arena_.file, holding);
  counts_.pages_stamped += pages_in(holding.range);
}

void Worker::keep(const Holding& holding) {
  pool_.push_back(holding);
  pool_bytes_ += holding.range.length();
}

Holding Worker::remove(size_t index) {
  std::swap(pool_[index], pool_.back());
  const Holding holding = pool_.back();
  pool_.pop_back();
  pool_bytes_ -= holding.range.length();
  return holding;
}

FileRange Worker::random_part(FileRange range) {
  const uint64_t pages = pages_in(range);
  const uint64_t first = random_.below(pages);
  const uint64_t count = 1 + random_.below(pages - first);
  const uint64_t start = range.start + first * page_size();
  return {start, start + count * page_size()};
}

// Mostly a few pages, now and then several MiB, of which half ask for huge pages.
uint64_t Worker::random_length() {
  const uint64_t dice = random_.below(100);
  const uint64_t bytes_max = dice < 80   ? 8 * page_size()
                             : dice < 90 ? 64 * page_size()
                                         : 4 * huge_page_size();
  const uint64_t bytes = std::min(bytes_max, arena_.bytes_per_worker / 2);
  return page_size() * (1 + random_.below(std::max<uint64_t>(bytes / page_size(), 1)));
}

}  // namespace pgalloc::torture
