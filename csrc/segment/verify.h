// Purpose: SegmentSet::verify(): every invariant of segment_set.h, tree.h and node.h, checked
// without trusting any of them.
//
// Thread safety: see segment_set.h.
#pragma once

#include <string>

#include "segment/segment_set.h"

namespace pgalloc::segment {

namespace internal {

// One walk over a tree, in key order.
template <class Traits>
class Verifier {
 public:
  explicit Verifier(const Tree<Traits>& tree) : tree_(tree) {}

  std::optional<std::string> run() {
    if (tree_.root() == nullptr) {
      if (tree_.first_leaf() != nullptr) return "empty tree with a first leaf";
    } else {
      if (tree_.root()->parent != nullptr) return "the root has a parent";
      if (tree_.root()->level > 0 && tree_.root()->count < 2) return "root with a single child";
      visit(tree_.root());
    }
    if (!problem_ && last_leaf_ != tree_.last_leaf()) problem_ = "last leaf is not the last one";
    if (!problem_ && segments_ != tree_.size()) problem_ = "wrong number of segments";
    return problem_;
  }
  uint64_t span() const { return span_; }

 private:
  void fail(const Node<Traits>* node, const char* what) {
    if (problem_) return;
    problem_ = std::string(what) + " (level " + std::to_string(node->level) + ", near key " +
               std::to_string(end_) + ")";
  }

  // Returns the first key below `node`.
  uint64_t visit(const Node<Traits>* node) {
    if (node->count == 0 || node->count > kNodeCapacity) {
      fail(node, "wrong number of entries");
      return 0;
    }
    const uint64_t first_key = node->level == 0
                                   ? visit_leaf(static_cast<const Leaf<Traits>*>(node))
                                   : visit_inner(static_cast<const Inner<Traits>*>(node));
    if constexpr (Traits::kTrackGaps) {
      for (unsigned measure = 0; measure < kGapMeasures && !problem_; ++measure) {
        const auto top = tree_.measure_gaps(node, measure);
        if (tree_.largest_gap(node, measure) != top.largest) {
          fail(node, measure == kPlainMeasure ? "wrong largest gap" : "wrong largest aligned gap");
        }
        if (node->runner_up[measure] < top.runner_up) fail(node, "runner-up is too low");
      }
    }
    return first_key;
  }

  uint64_t visit_inner(const Inner<Traits>* inner) {
    uint64_t first_key = 0;
    for (unsigned i = 0; i < inner->count && !problem_; ++i) {
      const Node<Traits>* child = inner->children[i];
      if (child->parent != inner) fail(inner, "child of another parent");
      if (child->level + 1 != inner->level) fail(inner, "child of a wrong level");
      if (problem_) break;
      const uint64_t child_key = visit(child);
      if (child_key != inner->keys[i]) fail(inner, "wrong key");
      if (i == 0) first_key = child_key;
    }
    for (unsigned i = inner->count; i < kNodeCapacity; ++i) {
      if (inner->keys[i] != kNoKey) fail(inner, "unused slot has a key");
    }
    return first_key;
  }

  uint64_t visit_leaf(const Leaf<Traits>* leaf) {
    const Leaf<Traits>* expected = last_leaf_ == nullptr ? tree_.first_leaf() : last_leaf_->next;
    if (leaf != expected || leaf->prev != last_leaf_) fail(leaf, "leaf linked at a wrong place");
    last_leaf_ = leaf;
    for (unsigned i = 0; i < leaf->count; ++i) {
      const FileRange range = leaf->ranges[i];
      if (range.start < end_) fail(leaf, "segments overlap or are out of order");
      if (range.empty()) fail(leaf, "empty segment");
      end_ = range.end;
      span_ += range.length();
    }
    segments_ += leaf->count;
    for (unsigned i = leaf->count; i < kNodeCapacity; ++i) {
      if (leaf->ranges[i].start != kNoKey) fail(leaf, "unused slot has a key");
    }
    return leaf->first_key();
  }

  const Tree<Traits>& tree_;
  std::optional<std::string> problem_;
  const Leaf<Traits>* last_leaf_ = nullptr;
  uint64_t end_ = 0;
  uint64_t span_ = 0;
  size_t segments_ = 0;
};

}  // namespace internal

template <class Traits>
std::optional<std::string> SegmentSet<Traits>::verify() const {
  internal::Verifier<Traits> verifier(tree_);
  std::optional<std::string> problem = verifier.run();
  if (!problem && verifier.span() != span_) problem = "wrong span";
  return problem;
}

}  // namespace pgalloc::segment
