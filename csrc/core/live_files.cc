#include "core/live_files.h"

#include <pthread.h>

#include <new>
#include <unordered_set>

#include "core/memory_file.h"

namespace pgalloc {

namespace internal {
constinit std::atomic<uint32_t> process_generation{0};
}

namespace {

struct Registry {
  Mutex mu{LockRank::kRegistry};
  std::unordered_set<MemoryFile*> files GUARDED_BY(mu);
  int parked GUARDED_BY(mu) = 0;
  Ledger booked_by_hand;
};

void before_fork();
void after_fork_in_parent();
void after_fork_in_child();

// Never destroyed: files may outlive static destruction.
Registry& registry() {
  static Registry* const instance = [] {
    ::pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
    return new Registry;
  }();
  return *instance;
}

// The child gets a registry that no vanished thread holds, because this thread holds it now.
void before_fork() NO_THREAD_SAFETY_ANALYSIS { registry().mu.lock(); }
void after_fork_in_parent() NO_THREAD_SAFETY_ANALYSIS { registry().mu.unlock(); }
void after_fork_in_child() NO_THREAD_SAFETY_ANALYSIS {
  Registry& registry = pgalloc::registry();
  registry.files.clear();  // they are the parent's
  registry.parked = 0;
  // The hand-booked account starts anew too; its lock may be held by a thread that is gone.
  new (&registry.booked_by_hand) Ledger;
  internal::process_generation.fetch_add(1);
  registry.mu.unlock();
}

}  // namespace

Status LiveFiles::add(MemoryFile* file) {
  MutexLock lock(registry().mu);
  if (registry().parked == 0) PGALLOC_RETURN_IF_ERROR(file->start_threads());
  registry().files.insert(file);
  return {};
}

void LiveFiles::remove(MemoryFile* file) {
  MutexLock lock(registry().mu);
  registry().files.erase(file);
  file->stop_threads();
}

Status LiveFiles::start_loaders(MemoryFile* file, unsigned count) {
  MutexLock lock(registry().mu);
  file->use_loaders(count);
  return registry().parked == 0 ? file->start_threads() : Status();
}

void LiveFiles::park_threads() {
  MutexLock lock(registry().mu);
  if (++registry().parked > 1) return;
  for (MemoryFile* file : registry().files) file->stop_threads();
}

void LiveFiles::resume_threads() {
  MutexLock lock(registry().mu);
  if (registry().parked == 0) return;
  if (--registry().parked > 0) return;
  for (MemoryFile* file : registry().files) file->restart_threads();
}

LedgerSnapshot LiveFiles::account() {
  LedgerSnapshot sum = registry().booked_by_hand.snapshot();
  MutexLock lock(registry().mu);
  for (const MemoryFile* file : registry().files) sum.add(file->ledger().snapshot());
  return sum;
}

Ledger& LiveFiles::booked_by_hand() { return registry().booked_by_hand; }

}  // namespace pgalloc
