// Purpose: what the guard decides, given what it reads: how much has to go, and how soon it has to
// look again. Pure: no clock, no system call, no state but its own.
//
// Thread safety: values only.
//
// The rules
//   1. A level is crowded when less than its headroom is available, and stays so until a quarter
//      more than that is (hysteresis: or every page that is touched would cost a discard).
//   2. Memory can be filled at most at so many bytes a second, so the next look comes before the
//      headroom of any level can be used up, and again before its limit can be reached.
//   3. On a busy machine the looks come late: the headroom grows by what can be filled meanwhile, at
//      most to twice what was asked for.
//   4. When nothing could be given back, looking for it takes a ninth of the time at most, and looks
//      get rarer and rarer if there is nothing that could be written to behind the guard's back.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace pgalloc {

// What a caller wants kept free: of each limit this share, and at least so many bytes.
struct Headroom {
  double fraction = 0;
  uint64_t bytes = 0;

  // Never more than half of it, however small the limit is.
  uint64_t of(uint64_t limit) const {
    const auto share = static_cast<uint64_t>(fraction * static_cast<double>(limit));
    return std::min(std::max(share, bytes), limit / 2);
  }
};

// How fast memory can be filled: page faults of one thread fill 1.6 GiB a second on the machine of
// docs/benchmarks.md; twice that for faster ones.
inline uint64_t fill_rate_per_s(unsigned processors) {
  constexpr uint64_t kRatePerProcessor = uint64_t{3} << 30;
  return kRatePerProcessor * std::clamp(processors, 1u, 8u);
}

class GuardPlan {
 public:
  using Duration = std::chrono::microseconds;
  static constexpr Duration kDelayMin{1'000};  // as fine as poll(2) counts
  static constexpr Duration kDelayMax{1'000'000};
  static constexpr Duration kBackOffMax{256'000};

  explicit GuardPlan(uint64_t rate_per_s) : rate_per_s_(rate_per_s) {}

  // Begins a look at all levels.
  void begin() {
    shortfall_ = 0;
    slack_ = UINT64_MAX;
    tightest_ = UINT64_MAX;
    critical_ = false;
  }
  void see(uint64_t available, uint64_t wanted_free) {
    const uint64_t headroom = wanted_free + std::min(wanted_free, filled_while_late());
    const uint64_t target = headroom + headroom / 4;
    const uint64_t wanted = crowded_ ? target : headroom;
    if (available < wanted) shortfall_ = std::max(shortfall_, target - available);
    slack_ = std::min(slack_, available > headroom ? available - headroom : 0);
    tightest_ = std::min(tightest_, available);
    critical_ = critical_ || available < headroom / 4;
  }
  // Ends it.
  void end() {
    crowded_ = shortfall_ > 0;
    if (!crowded_) back_off_ = Duration{0};
  }

  bool crowded() const { return crowded_; }
  bool critical() const { return critical_; }
  uint64_t shortfall() const { return shortfall_; }  // bytes to give back
  uint64_t slack() const { return slack_; }          // bytes until the first headroom is touched
  uint64_t available() const { return tightest_; }   // bytes until the first limit

  // The last look came so much later than it was to.
  void came_late(Duration late) { lateness_ = std::max(late, lateness_ - lateness_ / 64); }

  // Nothing could be given back, and looking for it took so long. With `nothing_unpinned`, nothing
  // will be until an allocation is unpinned.
  void found_nothing(Duration took, bool nothing_unpinned) {
    const Duration fill = until_filled(tightest_);
    const Duration rarer = std::max(2 * back_off_, kDelayMin);
    back_off_ = std::max(std::min(rarer, nothing_unpinned ? kBackOffMax : fill), 8 * took);
    back_off_ = std::min(back_off_, kDelayMax);
  }
  // Until the next look.
  Duration delay() const {
    if (crowded_) return std::max(back_off_, kDelayMin);
    return slack_ == UINT64_MAX ? kDelayMax : until_filled(slack_);
  }

 private:
  // Half of the time in which so many bytes can be used up.
  Duration until_filled(uint64_t bytes) const {
    const double seconds = static_cast<double>(bytes) / static_cast<double>(rate_per_s_) / 2;
    const std::chrono::duration<double> time(std::min(seconds, 10.0));
    return std::clamp(std::chrono::duration_cast<Duration>(time), kDelayMin, kDelayMax);
  }

  uint64_t filled_while_late() const {
    return rate_per_s_ / 1'000'000 * static_cast<uint64_t>(lateness_.count());
  }

  uint64_t rate_per_s_;
  Duration lateness_{0};  // the worst of the last looks, fading
  uint64_t shortfall_ = 0;
  uint64_t slack_ = UINT64_MAX;
  uint64_t tightest_ = UINT64_MAX;
  bool crowded_ = false;
  bool critical_ = false;
  Duration back_off_{0};
};

}  // namespace pgalloc
