// Purpose: the limits of what one process may take of an owner's.
//
// Thread safety: values only.
#pragma once

#include <cstdint>
#include <optional>

namespace pgalloc {

// What one process may take at most, over all of its connections. Bytes are those of one file.
struct PeerLimits {
  // Of pages it holds: checked when it allocates. Nothing: half of what can be allocated in a file that
  // is served; of others no limit: those peers are the program's own processes, and begin with leases on
  // all that was sent to them or that their parent had.
  std::optional<uint64_t> bytes;
  std::optional<uint64_t> unclaimed;  // of pages it has sent. Nothing: Offers::of_peer_max()
  uint32_t requests = 64;             // at once
  uint32_t children = 1024;           // forked, and alive
  uint64_t unpinned = 1 << 20;        // ranges
  friend bool operator==(const PeerLimits&, const PeerLimits&) = default;
};

}  // namespace pgalloc
