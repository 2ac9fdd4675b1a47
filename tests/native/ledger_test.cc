#include "pages/ledger.h"

#include "native/support.h"

namespace pgalloc::ledger_test {
namespace {

using native_tests::Random;

constexpr MemoryKind kind_of(uint64_t number) { return static_cast<MemoryKind>(number); }

TEST(random_bookings_equal_the_model) {
  Random random(1);
  Ledger ledger;
  LedgerSnapshot model;
  const auto book = [&](uint32_t memcg, uint64_t kind, int64_t bytes) {
    model.total[kind] += bytes;
    if (memcg == 0) return;
    model.memcgs[memcg][kind] += bytes;
    if (model.memcgs[memcg] == KindBytes{}) model.memcgs.erase(memcg);
  };
  for (int i = 0; i < 5000 && native_tests::failures == 0; ++i) {
    const uint64_t bytes = random.below(4);
    const auto memcg = static_cast<uint32_t>(random.below(3));
    const uint64_t kind = random.below(kMemoryKinds);
    const uint64_t to = random.below(kMemoryKinds);
    const bool booked = memcg == 0 || bytes == 0 ||
                        (model.memcgs.contains(memcg) && model.memcgs[memcg][kind] >= bytes);
    const bool enough = model.total[kind] >= bytes && booked;
    switch (random.below(4)) {
      case 0:
      case 1:
        EXPECT(ledger.inc(bytes, kind_of(kind), memcg).ok());
        if (bytes > 0) book(memcg, kind, static_cast<int64_t>(bytes));
        break;
      case 2:
        // Those of a memory cgroup must not go with what was booked to none.
        if (memcg == 0 &&
            ledger.total()[kind] < bytes + ledger.memcg(1)[kind] + ledger.memcg(2)[kind]) {
          break;
        }
        EXPECT_EQ(ledger.dec(bytes, kind_of(kind), memcg).ok(), enough);
        if (enough && bytes > 0) book(memcg, kind, -static_cast<int64_t>(bytes));
        break;
      default:
        if (memcg == 0 &&
            ledger.total()[kind] < bytes + ledger.memcg(1)[kind] + ledger.memcg(2)[kind]) {
          break;
        }
        EXPECT_EQ(ledger.move(bytes, kind_of(to), kind_of(kind), memcg).ok(), enough);
        if (!enough || bytes == 0) break;
        book(memcg, to, static_cast<int64_t>(bytes));
        book(memcg, kind, -static_cast<int64_t>(bytes));
    }
    const LedgerSnapshot now = ledger.snapshot();
    EXPECT_EQ(now.total, model.total);
    EXPECT(now.memcgs == model.memcgs);
    for (const uint32_t id : {1u, 2u}) {
      EXPECT_EQ(ledger.memcg(id), model.memcgs.contains(id) ? model.memcgs[id] : KindBytes{});
    }
  }
  ledger.clear();
  EXPECT_EQ(ledger.snapshot().sum(), 0u);
  EXPECT(ledger.snapshot().memcgs.empty());
}

TEST(errors_change_nothing) {
  Ledger ledger;
  EXPECT(ledger.inc(10, MemoryKind::kTmpfs, 1).ok());
  EXPECT(ledger.inc(5, MemoryKind::kTmpfs, 2).ok());
  const LedgerSnapshot before = ledger.snapshot();
  for (const Status& status :
       {ledger.dec(11, MemoryKind::kTmpfs, 1), ledger.dec(1, MemoryKind::kTmpfs, 3),
        ledger.dec(1, MemoryKind::kSystem, 0), ledger.inc(UINT64_MAX - 14, MemoryKind::kSystem, 0),
        ledger.move(6, MemoryKind::kSystem, MemoryKind::kTmpfs, 2)}) {
    if (EXPECT(!status.ok())) EXPECT_EQ(status.code(), ErrorCode::kAccount);
  }
  EXPECT_EQ(ledger.snapshot().total, before.total);
  EXPECT(ledger.snapshot().memcgs == before.memcgs);
  EXPECT(ledger.inc(UINT64_MAX - 15, MemoryKind::kSystem, 0).ok());
}

TEST(snapshots_add_up) {
  Ledger one;
  Ledger other;
  EXPECT(one.inc(1, MemoryKind::kTmpfs, 1).ok());
  EXPECT(other.inc(2, MemoryKind::kTmpfs, 1).ok());
  EXPECT(other.inc(4, MemoryKind::kSystem, 0).ok());
  LedgerSnapshot sum = one.snapshot();
  sum.add(other.snapshot());
  EXPECT_EQ(sum.sum(), 7u);
  EXPECT_EQ(sum.memcgs[1][static_cast<size_t>(MemoryKind::kTmpfs)], 3u);
}

TEST(k5_total_memory) {
  constexpr uint64_t kGib = uint64_t{1} << 30;
  EXPECT_EQ(total_memory(0, 0, 0), 2 * kGib);
  EXPECT_EQ(total_memory(3 * kGib, 0, 0), 3 * kGib);
  EXPECT_EQ(total_memory(3 * kGib, 3 * kGib, 0), 3 * kGib);
  EXPECT_EQ(total_memory(3 * kGib, 3 * kGib + 1, 0), 4 * kGib);
  EXPECT_EQ(total_memory(3 * kGib, 5 * kGib, 6 * kGib), 6 * kGib);
  EXPECT_EQ(total_memory(0, 0, 1), 1u);
  EXPECT_EQ(total_memory(0, UINT64_MAX, 0), UINT64_MAX);
}

}  // namespace
}  // namespace pgalloc::ledger_test
