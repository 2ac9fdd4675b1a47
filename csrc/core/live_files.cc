#include "core/live_files.h"

#include <pthread.h>

#include <algorithm>
#include <new>
#include <optional>
#include <unordered_set>
#include <vector>

#include "core/guard.h"
#include "core/inheritance.h"
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
void before_fork() NO_THREAD_SAFETY_ANALYSIS {
  Guard::before_fork();
  registry().mu.lock();
  for (MemoryFile* file : registry().files) {
    if (Inheritance::armed()) Inheritance::prepare(file);
  }
}
void after_fork_in_parent() NO_THREAD_SAFETY_ANALYSIS {
  registry().mu.unlock();
  Guard::after_fork_in_parent();
}
void after_fork_in_child() NO_THREAD_SAFETY_ANALYSIS {
  Registry& registry = pgalloc::registry();
  registry.files.clear();  // they are the parent's
  registry.parked = 0;
  // The hand-booked account starts anew too; its lock may be held by a thread that is gone.
  new (&registry.booked_by_hand) Ledger;
  internal::process_generation.fetch_add(1);
  registry.mu.unlock();
  Guard::after_fork_in_child();
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
  Guard::instance().park();  // it may be about to ask for the registry
  MutexLock lock(registry().mu);
  if (++registry().parked > 1) return;
  for (MemoryFile* file : registry().files) file->stop_threads();
}

void LiveFiles::resume_threads() {
  {
    MutexLock lock(registry().mu);
    if (registry().parked == 0) return;
    if (--registry().parked == 0) {
      for (MemoryFile* file : registry().files) file->restart_threads();
    }
  }
  Guard::instance().resume();
}

// --- All files together --------------------------------------------------------------------------

namespace {

// A file that cannot be closed meanwhile.
class FileInUse {
 public:
  explicit FileInUse(MemoryFile* file) : file_(file) {}
  FileInUse(FileInUse&& other) noexcept : file_(std::exchange(other.file_, nullptr)) {}
  FileInUse& operator=(FileInUse&&) = delete;
  ~FileInUse() {
    if (file_ != nullptr) file_->end_use();
  }
  MemoryFile* operator->() const { return file_; }

 private:
  MemoryFile* file_;
};

std::vector<FileInUse> files_in_use() {
  std::vector<FileInUse> files;
  MutexLock lock(registry().mu);
  files.reserve(registry().files.size());
  for (MemoryFile* file : registry().files) {
    if (file->begin_use()) files.emplace_back(file);
  }
  return files;
}

// The file whose turn it is, and up to which order it is.
std::optional<FileInUse> file_to_discard_from(uint64_t* order_max) {
  MutexLock lock(registry().mu);
  MemoryFile* oldest = nullptr;
  uint64_t oldest_order = UINT64_MAX;
  *order_max = UINT64_MAX;
  for (MemoryFile* file : registry().files) {
    const auto order = file->next_discard_order();
    if (!order) continue;
    if (*order < oldest_order) {
      *order_max = oldest_order;
      oldest_order = *order;
      oldest = file;
    } else {
      *order_max = std::min(*order_max, *order);
    }
  }
  if (oldest == nullptr || !oldest->begin_use()) return std::nullopt;
  return FileInUse(oldest);
}

}  // namespace

LiveFiles::Discarded LiveFiles::discard(uint64_t bytes_max,
                                        std::chrono::steady_clock::time_point deadline) {
  constexpr uint64_t kBatchBytes = uint64_t{8} << 20;
  constexpr int kFruitlessMax = 8;
  int fruitless = 0;  // batches of allocations that nobody has touched
  Discarded result;
  while (result.given_back < bytes_max && std::chrono::steady_clock::now() < deadline) {
    const uint64_t wanted = std::min(bytes_max - result.given_back, kBatchBytes);
    uint64_t order_max = 0;
    MemoryFile::Discarded batch;
    if (const auto file = file_to_discard_from(&order_max)) {
      batch = (*file)->discard(wanted, order_max);
    }
    if (batch.bytes == 0) {
      // What is oldest cannot go, and was put off: somebody else's may.
      for (const FileInUse& file : files_in_use()) {
        if (batch.bytes == 0) batch = file->discard(wanted, UINT64_MAX);
      }
    }
    result.given_back += batch.given_back;
    fruitless = batch.given_back > 0 ? 0 : fruitless + 1;
    result.exhausted = batch.bytes == 0;
    result.fruitless = fruitless == kFruitlessMax;
    if (result.no_use()) break;
  }
  return result;
}

uint64_t LiveFiles::discard_leftovers(uint64_t bytes_max, bool waiting) {
  uint64_t bytes = 0;
  for (const FileInUse& file : files_in_use()) {
    if (bytes < bytes_max) bytes += file->discard_leftovers(bytes_max - bytes, waiting);
  }
  return bytes;
}

bool LiveFiles::any_unpinned() {
  MutexLock lock(registry().mu);
  for (const MemoryFile* file : registry().files) {
    if (file->stats().unpinned_bytes > 0) return true;
  }
  return false;
}

void LiveFiles::start_evictions() {
  for (const FileInUse& file : files_in_use()) {
    if (file->options().use_host_memcg_pressure) file->evictables()->start_all();
  }
}

void LiveFiles::wait_for_reclaim(std::chrono::steady_clock::time_point deadline) {
  for (const FileInUse& file : files_in_use()) (void)file->wait_for_reclaim(deadline);
}

LedgerSnapshot LiveFiles::account() {
  LedgerSnapshot sum = registry().booked_by_hand.snapshot();
  MutexLock lock(registry().mu);
  for (const MemoryFile* file : registry().files) sum.add(file->ledger().snapshot());
  return sum;
}

Ledger& LiveFiles::booked_by_hand() { return registry().booked_by_hand; }

}  // namespace pgalloc
