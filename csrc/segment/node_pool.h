// Purpose: where nodes come from. A few spare nodes make splitting cheap, and let a mutator fetch
// every node it may need before it changes anything, so that running out of memory has no effect.
//
// Thread safety: externally synchronised.
//
// Invariants
//   1. Spare nodes are empty: all their keys are kNoKey.
//   2. put() keeps a node only while there are fewer than kKept spares; ensure() may go beyond.
#pragma once

#include <cstddef>
#include <utility>

#include "base/check.h"

namespace pgalloc::segment {

// Nodes of type T; spares are chained through T's member kLink.
template <class T, auto kLink>
class NodePool {
 public:
  NodePool() = default;
  NodePool(const NodePool&) = delete;
  NodePool& operator=(const NodePool&) = delete;
  ~NodePool() {
    while (spares_ > 0) delete pop();
  }

  void swap(NodePool& other) noexcept {
    std::swap(head_, other.head_);
    std::swap(spares_, other.spares_);
    std::swap(live_, other.live_);
  }

  // Makes the next `count` calls of take() succeed. Throws std::bad_alloc.
  void ensure(size_t count) {
    while (spares_ < count) push(new T);
  }
  // REQUIRES: ensure() promised it.
  T* take() {
    PGALLOC_CHECK(spares_ > 0);
    ++live_;
    T* node = pop();
    node->*kLink = nullptr;
    return node;
  }
  // REQUIRES: invariant 1 holds for `node`.
  void put(T* node) noexcept {
    --live_;
    if (spares_ < kKept) {
      push(node);
    } else {
      delete node;
    }
  }

  size_t memory_bytes() const { return (live_ + spares_) * sizeof(T); }

 private:
  static constexpr size_t kKept = 2;

  void push(T* node) {
    node->*kLink = head_;
    head_ = node;
    ++spares_;
  }
  T* pop() {
    T* node = head_;
    head_ = node->*kLink;
    --spares_;
    return node;
  }

  T* head_ = nullptr;
  size_t spares_ = 0;
  size_t live_ = 0;
};

}  // namespace pgalloc::segment
