// Purpose: how ranges go from one thread to another.
//
// Thread safety: any thread.
#pragma once

#include <mutex>
#include <utility>
#include <vector>

#include "torture/stamps.h"

namespace pgalloc::torture {

class Mailbox {
 public:
  // False when it is full; the sender keeps the holding then.
  bool put(const Holding& holding) {
    constexpr size_t kHoldingsMax = 64;
    const std::lock_guard lock(mu_);
    if (holdings_.size() >= kHoldingsMax) return false;
    holdings_.push_back(holding);
    return true;
  }
  std::vector<Holding> take_all() {
    const std::lock_guard lock(mu_);
    return std::exchange(holdings_, {});
  }
  std::vector<Holding> contents() const {
    const std::lock_guard lock(mu_);
    return holdings_;
  }

 private:
  mutable std::mutex mu_;
  std::vector<Holding> holdings_;
};

}  // namespace pgalloc::torture
