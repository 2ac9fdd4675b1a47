// Purpose: when values expire: a heap of times with the entries they belong to. What an entry was is not taken out:
// whether a time still holds is for the index to say.
//
// Thread safety: externally synchronised (the cache's lock).
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

namespace pgalloc::cache {

class Expiries {
 public:
  bool empty() const { return heap_.empty(); }
  size_t size() const { return heap_.size(); }
  void reserve(size_t more) {
    if (heap_.size() + more > heap_.capacity()) heap_.reserve(2 * heap_.size() + more);
  }
  // REQUIRES: reserve().
  void add(uint64_t expires_ns, uint64_t entry) {
    heap_.emplace_back(expires_ns, entry);
    std::push_heap(heap_.begin(), heap_.end(), std::greater<>());
  }
  // Calls expire(expires_ns, entry) for times that have come, so many at most.
  template <class Expire>
  void take_until(uint64_t now_ns, size_t count, Expire expire) {
    for (; count > 0 && !heap_.empty() && heap_.front().first <= now_ns; --count) {
      const auto [expires_ns, entry] = heap_.front();
      std::pop_heap(heap_.begin(), heap_.end(), std::greater<>());
      heap_.pop_back();
      expire(expires_ns, entry);
    }
  }
  // Those that do not hold go, and those that are here twice, where they would be more than a quarter of `holding`.
  template <class Holds>
  void tidy(uint64_t holding, Holds holds) {
    constexpr size_t kFew = 64;
    if (heap_.size() <= holding + holding / 4 + kFew) return;
    std::erase_if(heap_, [&](const auto& each) { return !holds(each.first, each.second); });
    std::sort(heap_.begin(), heap_.end());  // which makes it a heap
    heap_.erase(std::unique(heap_.begin(), heap_.end()), heap_.end());
  }
  void clear() { heap_ = {}; }

 private:
  std::vector<std::pair<uint64_t, uint64_t>> heap_;
};

}  // namespace pgalloc::cache
