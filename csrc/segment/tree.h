// Purpose: the B+tree under a SegmentSet: finding a place, opening and closing slots, and keeping
// keys and largest gaps right. It moves segments between nodes but never changes one; what ranges
// and values mean is the business of segment_set.h.
//
// Thread safety: externally synchronised. Searching moves the finger, so even const methods need
// exclusive access.
//
// Invariants, besides those of node.h
//   1. root_ is null iff the tree is empty; an inner root has at least two children.
//   2. first_ and last_ are the ends of the list of leaves.
//   3. root_largest_gap_ is what a parent of the root would hold about it.
//   4. size_ is the number of segments in the leaves.
//   5. finger_ and run_.leaf are null or leaves of this tree.
//
// An edit is always the same four steps, and the order matters:
//   open_slots() or close_slots(), then write ranges and values;
//   first_key_changed() if segment 0 of a leaf is another one, or starts elsewhere;
//   gap_grew() / gap_shrank() for the gaps that changed;
//   settle() after closing slots: frees an empty leaf, merges a sparse one.
// Between the steps the invariants are broken for the edited leaf only.
//
// Definitions: tree_gaps.h (largest gaps), tree_slots.h (within a node), tree_split.h,
// tree_merge.h.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "base/check.h"
#include "segment/node.h"
#include "segment/node_pool.h"

namespace pgalloc::segment {

template <class Traits>
class Tree {
 public:
  using Value = typename Traits::Value;
  using LeafNode = Leaf<Traits>;
  using InnerNode = Inner<Traits>;
  using AnyNode = Node<Traits>;
  using Place = Position<Traits>;

  static_assert(std::is_nothrow_copy_constructible_v<Value> &&
                    std::is_nothrow_copy_assignable_v<Value>,
                "segments move between nodes in code that cannot fail half-way");

  Tree() = default;
  Tree(const Tree&) = delete;
  Tree& operator=(const Tree&) = delete;
  ~Tree() { clear(); }
  void swap(Tree& other) noexcept;
  void clear() noexcept;

  bool empty() const { return root_ == nullptr; }
  size_t size() const { return size_; }
  AnyNode* root() const { return root_; }
  LeafNode* first_leaf() const { return first_; }
  LeafNode* last_leaf() const { return last_; }
  size_t memory_bytes() const { return leaves_.memory_bytes() + inners_.memory_bytes(); }

  // --- Finding -----------------------------------------------------------------------------------

  // Canonical place of the first segment that starts after `key`.
  Place place_after(uint64_t key) const {
    LeafNode* leaf = leaf_for(key);
    if (leaf == nullptr) return {};
    return Place{leaf, leaf->count_not_above(key)}.canonical();
  }
  // The last segment that starts at or before `key`, or {}.
  Place segment_at_or_below(uint64_t key) const {
    LeafNode* leaf = leaf_for(key);
    if (leaf == nullptr) return {};
    const unsigned above = leaf->count_not_above(key);
    return above > 0 ? Place{leaf, above - 1} : Place{};  // 0 only in the first leaf
  }
  // Canonical place of the first segment that ends after `key`.
  Place place_at_or_after(uint64_t key) const {
    LeafNode* leaf = leaf_for(key);
    if (leaf == nullptr) return {};
    const unsigned above = leaf->count_not_above(key);
    if (above > 0 && key < leaf->ranges[above - 1].end) return {leaf, above - 1};
    return Place{leaf, above}.canonical();
  }
  Place first_place() const { return {first_, 0}; }
  Place end_place() const { return last_ != nullptr ? Place{last_, last_->count} : Place{}; }
  // The same, for the tree that `leaf` belongs to.
  static Place end_place_of(LeafNode* leaf) {
    AnyNode* node = leaf;
    while (node->parent != nullptr) node = node->parent;
    while (node->level > 0) node = as_inner(node)->children[node->count - 1];
    return {as_leaf(node), node->count};
  }

  // The next search is likely to be near `leaf`.
  void remember(LeafNode* leaf) const { finger_ = leaf; }

  // --- Slots -------------------------------------------------------------------------------------

  // Fetches the nodes that opening `slots` (at most 2) slots in `leaf`, together or one by one, may
  // take, so that doing it cannot fail. Throws std::bad_alloc, without effect.
  void reserve(LeafNode* leaf, unsigned slots) {
    if (!has_room(leaf, slots)) [[unlikely]]
      ensure(demand_of(leaf, 1));
  }
  // The same for slots in two leaves; `a` may be `b`, and then `slots` is for both together.
  void reserve(LeafNode* a, LeafNode* b, unsigned slots) {
    if (has_room(a, slots) && has_room(b, slots)) return;
    ensure(demand_of(a, 2) + demand_of(b, 2));
  }
  // The same for so many edits anywhere, each of which opens one slot. A tree grows by one level at most with
  // few edits, and its new root has room.
  void reserve(size_t edits) {
    ensure({edits, edits * (root_ == nullptr ? 1 : size_t{root_->level} + 1)});
  }
  // Where to insert a segment at `at` (canonical) with the least effort: at a border between
  // leaves, nothing has to move if it goes to the end of the first.
  static Place roomier(Place at) {
    if (at.index > 0 || at.leaf == nullptr || !has_room(at.leaf->prev, 1)) return at;
    return {at.leaf->prev, at.leaf->prev->count};
  }
  // Opens `slots` slots in front of `at` and returns where they are now. If at.index > 0, the
  // segment before `at` is in the same leaf afterwards, right in front of the new slots.
  // Throws std::bad_alloc, without effect, unless reserved.
  Place open_slots(Place at, unsigned slots) {
    if (!has_room(at.leaf, slots)) [[unlikely]]
      at = make_room(at, slots);
    shift_up(at.leaf, at.index, slots);
    expect_settling(at.leaf);
    size_ += slots;
    run_ = {at.leaf, at.index, at.index + slots};
    finger_ = at.leaf;
    return at;
  }
  // Drops the segments in `slots` slots from `at` on; all must be in at.leaf.
  void close_slots(Place at, unsigned slots) {
    shift_down(at.leaf, at.index, slots);
    size_ -= slots;
    if (run_.leaf == at.leaf && at.index < run_.end) run_.end -= slots;
    finger_ = at.leaf;
  }
  // The end of an edit that closed slots: restores the invariants on node sizes. `at` follows its
  // place wherever that moves; the result is canonical.
  Place settle(Place at) {
    if (at.leaf->count <= at.leaf->settle_at) [[unlikely]]
      at = rebalance(at);
    return at.canonical();
  }
  // Segment 0 of `leaf` is another one, has a new start, or was the only one.
  void first_key_changed(LeafNode* leaf) {
    if (leaf->count > 0) set_first_key(leaf, leaf->first_key());
  }

  // --- Gaps (all of this is void unless Traits::kTrackGaps)
  // ---------------------------------------

  // `gap` of `leaf` is new, or larger than before.
  void gap_grew(LeafNode* leaf, FileRange gap);
  // A gap of `leaf` was `before`, and is `gap` now; that may be {}.
  void gap_shrank(LeafNode* leaf, FileRange before, FileRange gap);
  // Anything may have happened to the gaps of `node`.
  void gaps_changed(AnyNode* node);

  // The lowest (highest) place whose gap fits `request`, from `at` on upwards (downwards from the
  // gap before `at`); the gap after the last segment is not considered. {} if there is none.
  static Place next_fitting_gap(Place at, GapRequest request);
  static Place prev_fitting_gap(Place at, GapRequest request);
  Place lowest_fitting_gap(GapRequest request) const;
  Place highest_fitting_gap(GapRequest request) const;

  // The cached size of the largest gap below `node`; exposed for verify.h.
  uint64_t& largest_gap(const AnyNode* node, unsigned measure) const;
  // What it and the runner-up of `node` have to be.
  struct TopTwo {
    uint64_t largest = 0;
    uint64_t runner_up = 0;

    void add(uint64_t size) {
      runner_up = std::max(runner_up, std::min(largest, size));
      largest = std::max(largest, size);
    }
  };
  static TopTwo measure_gaps(const AnyNode* node, unsigned measure, uint64_t limit = kNoKey);

 private:
  enum class Direction { kUp, kDown };

  // How many nodes an edit takes.
  struct Demand {
    size_t leaves;
    size_t inners;
    Demand operator+(Demand other) const { return {leaves + other.leaves, inners + other.inners}; }
  };

  // The slots opened last: [begin, end) of `leaf`. An edit next to them is taken for one of an
  // ascending or descending run; splitting a node there leaves full nodes behind.
  struct Run {
    LeafNode* leaf = nullptr;
    uint32_t begin = 0;
    uint32_t end = 0;
  };

  static InnerNode* as_inner(AnyNode* node) { return static_cast<InnerNode*>(node); }
  static const InnerNode* as_inner(const AnyNode* node) {
    return static_cast<const InnerNode*>(node);
  }
  static LeafNode* as_leaf(AnyNode* node) { return static_cast<LeafNode*>(node); }
  static const LeafNode* as_leaf(const AnyNode* node) { return static_cast<const LeafNode*>(node); }
  static bool has_room(const LeafNode* leaf, unsigned slots) {
    return leaf != nullptr && leaf->count + slots <= kNodeCapacity;
  }

  // A leaf is looked after when it has lost half of the segments that it had at most since it was
  // looked after: often enough to bound memory, too seldom to cost anything.
  static void expect_settling(LeafNode* leaf) {
    leaf->settle_at = std::max<uint32_t>(leaf->settle_at, leaf->count / 2);
  }

  LeafNode* leaf_for(uint64_t key) const {
    if (finger_ == nullptr || !reaches(finger_, key)) finger_ = descend(key);
    return finger_;
  }
  // Whether place_after(key) surely is in `leaf`, or is the first place of its successor.
  static bool reaches(const LeafNode* leaf, uint64_t key) {
    return (leaf->first_key() <= key || leaf->prev == nullptr) &&
           (key < leaf->last_end() || leaf->next == nullptr);
  }
  LeafNode* descend(uint64_t key) const {
    AnyNode* node = root_;
    if (node == nullptr) return nullptr;
    while (node->level > 0) node = as_inner(node)->child_for(key);
    prefetch(as_leaf(node));
    return as_leaf(node);
  }
  // All of a leaf is fetched at once: an edit is going to shift half of it.
  static void prefetch(const LeafNode* leaf) {
    constexpr size_t kCacheLine = 64;
    const char* bytes = reinterpret_cast<const char*>(leaf);
    for (size_t i = 0; i < sizeof(LeafNode); i += kCacheLine) __builtin_prefetch(bytes + i);
  }

  // tree_slots.h
  static void shift_up(LeafNode* leaf, unsigned index, unsigned slots);
  static void shift_down(LeafNode* leaf, unsigned index, unsigned slots);
  static void copy_segments(const LeafNode* from, unsigned index, unsigned slots, LeafNode* to);
  static void move_children(InnerNode* from, unsigned index, InnerNode* to);
  static unsigned slot_of(const AnyNode* node);
  static void set_first_key(AnyNode* node, uint64_t key);

  // tree_split.h
  Demand demand_of(const LeafNode* leaf, unsigned splits) const;
  void ensure(Demand demand);
  Place make_room(Place at, unsigned slots);
  unsigned split_point(Place at, unsigned slots) const;
  void insert_child_after(AnyNode* node, AnyNode* fresh, uint64_t key);
  InnerNode* split_inner(InnerNode* inner, unsigned slot);
  void grow_root();
  void refresh_path(InnerNode* inner);

  // tree_merge.h
  Place rebalance(Place at);
  void absorb_next(LeafNode* leaf);
  void give_to_prev(LeafNode* leaf, unsigned slots);
  void remove_leaf(LeafNode* leaf);
  void remove_child(AnyNode* child);
  void merge_sparse(InnerNode* inner);
  void absorb_sibling(InnerNode* left, InnerNode* right);
  void shrink_root();

  // tree_gaps.h
  void entry_grew(AnyNode* node, unsigned measure, uint64_t size);
  void entry_shrank(AnyNode* node, unsigned measure, uint64_t before, uint64_t size);
  template <Direction kDirection>
  static Place search_leaf(LeafNode* leaf, unsigned from, GapRequest request);
  template <Direction kDirection>
  static AnyNode* search_inner(const InnerNode* inner, unsigned from, unsigned measure,
                               uint64_t size);
  template <Direction kDirection>
  static LeafNode* descend_to_gap(AnyNode* node, unsigned measure, uint64_t size);
  template <Direction kDirection>
  static LeafNode* next_leaf_with_gap(const LeafNode* leaf, unsigned measure, uint64_t size);
  template <Direction kDirection>
  static Place search_from(Place at, GapRequest request);
  template <Direction kDirection>
  Place search_all(GapRequest request) const;

  AnyNode* root_ = nullptr;
  size_t size_ = 0;
  LeafNode* first_ = nullptr;
  LeafNode* last_ = nullptr;
  mutable LeafNode* finger_ = nullptr;  // where the last search or edit ended
  Run run_;
  mutable uint64_t root_largest_gap_[kGapMeasures] = {};
  NodePool<LeafNode, &LeafNode::next> leaves_;
  NodePool<InnerNode, &InnerNode::parent> inners_;
};

}  // namespace pgalloc::segment

#include "segment/tree_gaps.h"
#include "segment/tree_merge.h"
#include "segment/tree_slots.h"
#include "segment/tree_split.h"
