// Purpose: holders that are not needed any more. Their pages are given back at its end, without the cache's lock: it is to be
// declared before that is taken.
//
// Thread safety: externally synchronised.
#pragma once

#include <memory>
#include <utility>

#include "cache/holders.h"
#include "file/memory_file.h"

namespace pgalloc::cache {

class Bin {
 public:
  explicit Bin(MemoryFile& file) : file_(file) {}
  ~Bin() {
    while (first_ != nullptr) {
      const std::unique_ptr<Holder> holder(std::exchange(first_, first_->next_gone));
      give_back(*holder);
    }
  }
  Bin(const Bin&) = delete;
  Bin& operator=(const Bin&) = delete;

  void add(std::unique_ptr<Holder> holder) {
    holder->next_gone = first_;
    first_ = holder.release();
  }

 private:
  void give_back(const Holder& holder);

  MemoryFile& file_;
  Holder* first_ = nullptr;
};

}  // namespace pgalloc::cache
