// Purpose: holders that are not needed any more, until their pages are given back. That needs memory, and may have to be
// tried again.
//
// Thread safety: Leavings: any thread, without the cache's lock. Bin: externally synchronised.
#pragma once

#include <atomic>
#include <memory>
#include <utility>

#include "cache/holders.h"
#include "file/memory_file.h"

namespace pgalloc::cache {

// Of one cache: those for which there was no memory.
class Leavings {
 public:
  explicit Leavings(MemoryFile& file) : file_(file) {}
  ~Leavings();
  Leavings(const Leavings&) = delete;
  Leavings& operator=(const Leavings&) = delete;

  bool empty() const { return first_.load(std::memory_order_relaxed) == nullptr; }
  // Gives back the pages of these holders, and of those that wait.
  void give_back(Holder* first);

 private:
  bool try_to_give_back(const Holder& holder);

  MemoryFile& file_;
  std::atomic<Holder*> first_{nullptr};
};

// What one call lets go of. It is given back at the end: to be declared before the lock is taken.
class Bin {
 public:
  explicit Bin(Leavings& leavings) : leavings_(leavings) {}
  ~Bin() {
    if (first_ != nullptr || !leavings_.empty()) leavings_.give_back(first_);
  }
  Bin(const Bin&) = delete;
  Bin& operator=(const Bin&) = delete;

  void add(std::unique_ptr<Holder> holder) {
    holder->next_gone = first_;
    first_ = holder.release();
  }

 private:
  Leavings& leavings_;
  Holder* first_ = nullptr;
};

}  // namespace pgalloc::cache
