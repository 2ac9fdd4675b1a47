// Purpose: a list of all living objects of a class, for a fork, which has something to do with each.
//
// Thread safety: any thread. What visits the list holds listed_lock().
//
// Invariants
//   1. An object is in the list from enlist() to unlist(), which its class calls at the end of its
//      constructors and at the beginning of its destructor: what is visited is whole.
//   2. The list needs no memory.
#pragma once

#include "base/mutex.h"

namespace pgalloc {

template <class T, LockRank kRank>
class Listed {
 public:
  Listed(const Listed&) = delete;
  Listed& operator=(const Listed&) = delete;

  static Mutex& listed_lock() { return mu_; }
  // REQUIRES: listed_lock().
  template <class Visit>
  static void visit_listed(Visit visit) {
    for (Listed* each = first_; each != nullptr; each = each->next_) visit(static_cast<T&>(*each));
  }

 private:
  friend T;
  Listed() = default;
  ~Listed() = default;

  void enlist() {
    MutexLock lock(mu_);
    next_ = first_;
    if (next_ != nullptr) next_->place_ = &next_;
    first_ = this;
    place_ = &first_;
  }
  // Harmless when repeated.
  void unlist() {
    MutexLock lock(mu_);
    if (place_ == nullptr) return;
    *place_ = next_;
    if (next_ != nullptr) next_->place_ = place_;
    place_ = nullptr;
  }

  inline static constinit Mutex mu_{kRank};
  inline static constinit Listed* first_ = nullptr;
  Listed* next_ = nullptr;
  Listed** place_ = nullptr;  // what points here
};

}  // namespace pgalloc
