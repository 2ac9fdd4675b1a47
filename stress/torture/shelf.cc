#include "torture/shelf.h"

#include "torture/verdict.h"

namespace pgalloc::torture {

void Shelf::put(Random& random, const Holding& holding) {
  const uint64_t id = random.below(users_.size());
  User& user = users_[id];
  uint64_t number = 0;
  {
    const std::lock_guard lock(user.mu);
    number = user.next_number++;
    user.holdings.emplace(number, holding);
  }
  expect_ok(file_.mark_evictable(id, {number, number + 1}), "mark_evictable");
}

std::optional<Holding> Shelf::take(Random& random) {
  const uint64_t id = random.below(users_.size());
  User& user = users_[id];
  uint64_t number = 0;
  {
    const std::lock_guard lock(user.mu);
    if (user.holdings.empty()) return std::nullopt;
    auto found = user.holdings.lower_bound(random.below(user.next_number));
    if (found == user.holdings.end()) found = user.holdings.begin();
    number = found->first;
  }
  const std::optional<Holding> holding = extract(user, number);
  if (holding) file_.evictables()->unmark(id, {number, number + 1});
  return holding;
}

void Shelf::run_evictions() {
  Evictables& evictables = *file_.evictables();
  while (const auto id = evictables.wait_for_due_user()) {
    while (const auto range = evictables.next(*id)) {
      for (uint64_t number = range->start; number < range->end; ++number) {
        const std::optional<Holding> holding = extract(users_[*id], number);
        if (!holding) continue;  // a worker took it back just before
        expect_intact(file_, *holding, "when it was evicted");
        source_.drop(holding->range);
        ++evicted_;
      }
    }
  }
}

std::vector<Holding> Shelf::contents() const {
  std::vector<Holding> all;
  for (const User& user : users_) {
    const std::lock_guard lock(user.mu);
    for (const auto& [number, holding] : user.holdings) all.push_back(holding);
  }
  return all;
}

std::optional<Holding> Shelf::extract(User& user, uint64_t number) {
  const std::lock_guard lock(user.mu);
  const auto found = user.holdings.find(number);
  if (found == user.holdings.end()) return std::nullopt;
  const Holding holding = found->second;
  user.holdings.erase(found);
  return holding;
}

}  // namespace pgalloc::torture
