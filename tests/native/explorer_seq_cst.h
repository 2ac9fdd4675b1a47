// Purpose: the order of the seq_cst operations of one execution, as C++20 demands it ([atomics.order] 3
// and 4), for an exploration (explorer.h).
//
// Thread safety: externally synchronised.
//
// Such operations and fences are the nodes of a graph; an edge says that one has to be before the other:
// 1. One strongly happens before the other: it is in the view that the other's thread has. (A release store
//    releases the view from before it is a node.)
// 2. An access A is coherence-ordered before B, which is in the same location: A reads or writes an older
//    message, or B reads what A wrote. Then all heads of A are before all tails of B: the heads are A and
//    the fences that happen before A, the tails B and the fences that B happens before.
// 3. `before` of a node is closed: with a node it has all that are before that.
// 4. There is no circle. An access that would close one is not allowed; a fence never does, since nothing
//    has to be after it when it is added, nor does an access at the end of the modification order.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <vector>

#include "base/check.h"
#include "native/explorer.h"

namespace pgalloc::native_tests::exploring {

inline uint64_t bit(uint32_t number) { return uint64_t{1} << number; }

// Calls visit(number) for each bit that is set.
template <class Visit>
void for_bits(uint64_t bits, Visit visit) {
  for (; bits != 0; bits &= bits - 1) visit(static_cast<uint32_t>(std::countr_zero(bits)));
}

// What happens before a point of a thread.
struct View {
  std::array<uint32_t, kSlotsMax> at{};  // [0, kThreadsMax): clocks of threads; then locations
  uint64_t nodes = 0;                    // of the graph of seq_cst

  void join(const View& other, uint32_t slots) {
    for (uint32_t slot = 0; slot < slots; ++slot) {
      if (at[slot] < other.at[slot]) at[slot] = other.at[slot];
    }
    nodes |= other.nodes;
  }
};

class SeqCst {
 public:
  void clear() {
    count_ = 0;
    fences_ = 0;
    accesses_.clear();
  }

  // Whether an access can be made by a thread with that view: as it then has all its edges at once, the
  // graph stays without a circle exactly if none is closed here.
  bool allows(const View& view, uint32_t location, uint32_t at, bool writes,
              bool is_seq_cst) const {
    if (count_ == 0) return true;
    return (closed(before(view, location, at, writes, is_seq_cst)) & after(location, at)) == 0;
  }

  // Notes the access; its node, or none, as bits.
  uint64_t add_access(const View& view, uint32_t location, uint32_t at, bool writes,
                      bool is_seq_cst) {
    if (count_ == 0 && !is_seq_cst) return 0;
    uint64_t ahead = closed(before(view, location, at, writes, is_seq_cst));
    const uint64_t behind = after(location, at);
    const uint64_t node = is_seq_cst ? add_node(ahead) : 0;
    ahead |= node;
    for (uint32_t other = 0; other < count_; ++other) {
      if (((nodes_[other].before | bit(other)) & behind) != 0) nodes_[other].before |= ahead;
    }
    const uint64_t heads = (view.nodes & fences_) | node;
    if (heads != 0) accesses_.push_back({location, at, writes, heads});
    return node;
  }

  uint64_t add_fence(const View& view) {
    uint64_t ahead = view.nodes;
    for (const Access& access : accesses_) {
      // Is the access coherence-ordered before something that happens before the fence?
      const uint32_t known = view.at[access.location];
      if (access.at < known || (access.writes && access.at == known)) ahead |= access.heads;
    }
    const uint64_t node = add_node(closed(ahead));
    nodes_[count_ - 1].view = view;
    fences_ |= node;
    return node;
  }

 private:
  struct Node {
    uint64_t before = 0;
    View view;  // of a fence
  };
  // Accesses without heads order nothing.
  struct Access {
    uint32_t location;
    uint32_t at;
    bool writes;
    uint64_t heads;  // itself, and the fences that happen before it
  };

  uint64_t add_node(uint64_t before) {
    PGALLOC_CHECK_OP(count_, <, kNodesMax);
    nodes_[count_].before = before;
    return bit(count_++);
  }
  uint64_t closed(uint64_t nodes) const {
    uint64_t all = nodes;
    for_bits(nodes, [&](uint32_t node) { all |= nodes_[node].before; });
    return all;
  }
  // What has to be before the access or, if that is not seq_cst, before all that has to be after it.
  uint64_t before(const View& view, uint32_t location, uint32_t at, bool writes,
                  bool is_seq_cst) const {
    if (!is_seq_cst) return view.nodes & fences_;
    uint64_t nodes = view.nodes;
    for (const Access& access : accesses_) {
      if (access.location != location) continue;
      if (access.at < at || (access.at == at && access.writes && !writes)) nodes |= access.heads;
    }
    return nodes;
  }
  // What has to be after it: it is coherence-ordered before these, or before what happens before them.
  // (Nothing has read yet what it writes.)
  uint64_t after(uint32_t location, uint32_t at) const {
    uint64_t nodes = 0;
    for (const Access& access : accesses_) {
      if (access.location == location && at < access.at) nodes |= access.heads & ~fences_;
    }
    for_bits(fences_, [&](uint32_t fence) {
      if (at < nodes_[fence].view.at[location]) nodes |= bit(fence);
    });
    return nodes;
  }

  uint32_t count_ = 0;
  uint64_t fences_ = 0;
  std::array<Node, kNodesMax> nodes_;
  std::vector<Access> accesses_;
};

}  // namespace pgalloc::native_tests::exploring
