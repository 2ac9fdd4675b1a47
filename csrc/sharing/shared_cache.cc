#include "sharing/shared_cache.h"

#include <map>

#include "base/mutex.h"

namespace pgalloc {
namespace {

struct Listed {
  Mutex mu{LockRank::kCaches};
  std::map<uint64_t, std::weak_ptr<SharedCache>> caches GUARDED_BY(mu);
};
Listed& listed() {
  static auto* const all = new Listed;  // caches may end after everything else
  return *all;
}

}  // namespace

std::shared_ptr<SharedCache> SharedCache::find(uint64_t id) {
  MutexLock lock(listed().mu);
  const auto found = listed().caches.find(id);
  return found == listed().caches.end() ? nullptr : found->second.lock();
}

void SharedCache::list(const std::shared_ptr<SharedCache>& cache) {
  MutexLock lock(listed().mu);
  listed().caches.emplace(cache->id(), cache);
}

void SharedCache::unlist(uint64_t id) noexcept {
  MutexLock lock(listed().mu);
  listed().caches.erase(id);
}

void SharedCache::lock_for_fork() { listed().mu.lock_unranked(); }
void SharedCache::unlock_in_parent() { listed().mu.unlock_unranked(); }
void SharedCache::reset_in_child() {
  listed().caches.clear();
  listed().mu.unlock_unranked();
}

}  // namespace pgalloc
