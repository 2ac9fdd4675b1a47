// Purpose: the states a page goes through, and the ordered sets that record them.
//
// void --grow--> free --allocate--> used (refs >= 1) --last dec_ref--> waste --take--> releasing
//                 ^                  ^                                  |                |
//                 |                  +-------------- recycle ----------+                |
//                 +------------------------------ punched ------------------------------+
//                                                               (or: quarantined, if it cannot be)
//
// Of a huge page (areas.h), parts that are not used beside parts that are do not become free but
// subreleased: after they were punched, or from the start if the allocation ends inside it. They are waste
// again when the rest of the huge page is; see waste.h.
//
// Who moves a page along which arrow, always under the MemoryFile lock:
//   grow, allocate, recycle   an allocating thread
//   last dec_ref              the thread that drops the last reference
//   take, punched, quarantined the reclaimer, and only the reclaimer
//
// A page is void beyond the end of the file; free when no segment of the usage set covers it; used
// when its segment has references; waste, releasing, quarantined or subreleased when its segment has none.
// Which of the four is told by the Waste (waste, subreleased) and by counters (releasing, quarantined).
//
// Thread safety: values only.
#pragma once

#include <cstdint>

#include "base/units.h"
#include "pages/ledger.h"
#include "segment/segment_set.h"

namespace pgalloc {

struct PageUse {
  uint32_t refs = 0;
  uint32_t memcg_id = 0;
  MemoryKind kind = MemoryKind::kSystem;
  bool committed = false;  // known to be backed by memory, and booked in the ledger

  friend bool operator==(const PageUse&, const PageUse&) = default;
};

struct UsageTraits {
  using Value = PageUse;
  static constexpr bool kTrackGaps = true;
  static constexpr uint64_t kGapAlignment = kUsualHugePageSize;
  static bool merge(Value& left, const Value& right) { return left == right; }
  static Value split(Value& value, FileRange, uint64_t) { return value; }
};

using UsageSet = segment::SegmentSet<UsageTraits>;

}  // namespace pgalloc
