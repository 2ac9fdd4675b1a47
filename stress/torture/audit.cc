#include "torture/audit.h"

#include <chrono>
#include <cinttypes>
#include <map>
#include <optional>
#include <thread>

#include "os/syscalls.h"
#include "torture/verdict.h"

namespace pgalloc::torture {
namespace {

struct Counted {
  FileRange range;
  uint64_t refs;
  bool operator==(const Counted&) const = default;
};

// Neighbours with the same count become one.
void append(std::vector<Counted>& counted, FileRange range, uint64_t refs) {
  if (range.empty() || refs == 0) return;
  if (!counted.empty() && counted.back().range.end == range.start && counted.back().refs == refs) {
    counted.back().range.end = range.end;
  } else {
    counted.push_back({range, refs});
  }
}

std::vector<Counted> references_held(const std::vector<Holding>& holdings) {
  std::map<uint64_t, int64_t> changes;  // of the count, by offset
  for (const Holding& holding : holdings) {
    ++changes[holding.range.start];
    --changes[holding.range.end];
  }
  std::vector<Counted> counted;
  uint64_t position = 0;
  int64_t refs = 0;
  for (const auto& [offset, change] : changes) {
    append(counted, {position, offset}, static_cast<uint64_t>(refs));
    position = offset;
    refs += change;
  }
  return counted;
}

void settle(MemoryFile& file) {
  if (!file.wait_for_reclaim(std::nullopt)) fail("the reclaimer did not finish");
  while (true) {
    file.use_real_clock();  // no waiting for the throttle
    const Result<bool> current = file.scanner().update(nullptr);
    if (!current.ok()) expect_ok(current.status(), "update_usage");
    if (*current) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // time: it polls
  }
}

void compare_references(const std::vector<PageSegment>& segments,
                        const std::vector<Holding>& holdings) {
  std::vector<Counted> recorded;
  for (const auto& [range, use, size] : segments) append(recorded, range, use.refs);
  const std::vector<Counted> held = references_held(holdings);
  for (size_t i = 0; i < held.size() || i < recorded.size(); ++i) {
    const Counted want = i < held.size() ? held[i] : Counted{};
    const Counted have = i < recorded.size() ? recorded[i] : Counted{};
    if (want == have) continue;
    fail("references are lost or too many: [%#" PRIx64 ", %#" PRIx64 ") should have %" PRIu64
         ", and [%#" PRIx64 ", %#" PRIx64 ") has %" PRIu64,
         want.range.start, want.range.end, want.refs, have.range.start, have.range.end, have.refs);
  }
}

// Nothing where the kernel cannot count (before Linux 6.5, under valgrind).
std::optional<uint64_t> stored_bytes_in(MemoryFile& file, FileRange range) {
  os::CacheStat stat;
  if (os::kernel().cachestat(file.fd(), range.start, range.length(), &stat) != 0) {
    return std::nullopt;
  }
  return (stat.cached + stat.evicted) * page_size();
}

void compare_account(MemoryFile& file, const std::vector<PageSegment>& segments) {
  uint64_t committed = 0;
  bool exact = true;
  for (const auto& [range, use, size] : segments) {
    const uint64_t believed = use.committed ? range.length() : 0;
    committed += believed;
    const std::optional<uint64_t> stored = stored_bytes_in(file, range);
    exact = exact && stored.has_value();
    if (stored && *stored != believed) {
      fail("[%#" PRIx64 ", %#" PRIx64 "): %" PRIu64 " bytes are believed committed, %" PRIu64
           " are",
           range.start, range.end, believed, *stored);
    }
  }
  const uint64_t booked = file.ledger().snapshot().sum();
  const Result<uint64_t> stored = file.total_usage();
  if (!stored.ok()) expect_ok(stored.status(), "total_usage");
  // Pages that were committed and never touched are seen by no other call than cachestat.
  const bool agrees = exact ? booked == *stored : booked <= *stored;
  if (booked != committed || !agrees) {
    fail("booked %" PRIu64 ", known to be committed %" PRIu64 ", stored %" PRIu64 " bytes", booked,
         committed, *stored);
  }
}

}  // namespace

void audit_at_rest(MemoryFile& file, const std::vector<Holding>& holdings) {
  settle(file);
  if (const auto broken = file.verify()) fail("verify at rest: %s", broken->c_str());
  const auto seen = file.segments();
  const std::vector<PageSegment> segments(seen.begin(), seen.end());
  compare_references(segments, holdings);
  compare_account(file, segments);
}

void audit_at_the_end(MemoryFile& file) {
  audit_at_rest(file, {});
  if (!file.segments().empty()) fail("segments are left");
  if (file.ledger().snapshot().sum() != 0) fail("the ledger is not zero");
  if (*file.total_usage() != 0) fail("the kernel still stores pages");
  const MemoryFileStats stats = file.stats();
  if (stats.allocated_bytes != stats.freed_bytes) {
    fail("%" PRIu64 " bytes allocated, %" PRIu64 " freed", stats.allocated_bytes,
         stats.freed_bytes);
  }
}

}  // namespace pgalloc::torture
