// Purpose: bugs that a stress test plants in the broker, to see that it finds them.
//
// Thread safety: any thread.
#pragma once

#include <atomic>
#include <cstdint>

namespace pgalloc {

enum class Plant : uint8_t {
  kNone,
  kLost,   // what some dead peers held is kept
  kEarly,  // some leases end while the peer has them
  kFork,   // some forked children get no leases
};

inline constinit std::atomic<Plant> planted{Plant::kNone};

// Whether that bug is to show now: every tenth time.
inline bool strikes(Plant plant) {
  static std::atomic<unsigned> calls{0};
  return planted.load(std::memory_order_relaxed) == plant && ++calls % 10 == 0;
}

}  // namespace pgalloc
