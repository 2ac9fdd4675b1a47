// Purpose: what the parts of a Store have in common: holders that have left it, and a value that is about to come.
//
// Thread safety: as noted.
#pragma once

#include <memory>
#include <utility>

#include "cache/store.h"

namespace pgalloc::cache {

// Holders that no view needs any more. Their pages are given back at its end, and those for which there was no memory
// before: to be declared before the lock is taken.
class Store::Bin {
 public:
  explicit Bin(Store& store) : store_(store) {}
  ~Bin() {
    if (first_ != nullptr || store_.unreturned_.load(std::memory_order_relaxed) != nullptr) {
      store_.return_pages(first_);
    }
  }
  Bin(const Bin&) = delete;
  Bin& operator=(const Bin&) = delete;

  void add(std::unique_ptr<Holder> holder) {
    holder->next_garbage = first_;
    first_ = holder.release();
  }

 private:
  Store& store_;
  Holder* first_ = nullptr;
};

// What the index needs for a value, from prepare() to enter(), which cannot fail. It gives back what was not used: to be
// declared after the lock is taken.
class Store::Draft {
 public:
  explicit Draft(Store& store) : store_(store) {}
  ~Draft() NO_THREAD_SAFETY_ANALYSIS {
    if (has_key) store_.index_.keys().remove(fields.key_place, fields.key_length);
    if (tag != nullptr) store_.tags_.let_go(*tag);
  }
  Draft(Draft&& other) noexcept
      : fields(other.fields),
        has_key(std::exchange(other.has_key, false)),
        tag(std::exchange(other.tag, nullptr)),
        store_(other.store_) {}
  Draft(const Draft&) = delete;
  Draft& operator=(const Draft&) = delete;

  Fields fields;
  bool has_key = false;
  Tags::Tag* tag = nullptr;

 private:
  Store& store_;
};

}  // namespace pgalloc::cache
