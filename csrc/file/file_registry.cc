#include "file/file_registry.h"

#include <algorithm>
#include <new>
#include <optional>
#include <unordered_set>
#include <utility>
#include <vector>

#include "file/registered_file.h"
#include "guard/guard.h"

namespace pgalloc {

namespace {

// All files, as the guard sees them.
class AllFiles final : public DiscardSource {
 public:
  Discarded discard(uint64_t bytes_max, Time deadline) override;
  uint64_t release_kept(Time deadline) override;
  uint64_t sweep(uint64_t bytes_max, bool waiting) override;
  bool any_unpinned() override;
  void start_evictions() override;
  void wait_for_reclaim(Time deadline) override;
};

struct Registry {
  // Held while threads of files end, which may need the guard and `mu` for that: a loading thread gives
  // memory back. Files come and go with both held.
  Mutex threads_mu{LockRank::kFileThreads};
  Mutex mu{LockRank::kRegistry};
  std::unordered_set<RegisteredFile*> files GUARDED_BY(mu);
  int parked GUARDED_BY(threads_mu) = 0;

  template <class Visit>
  void visit_files(Visit visit) REQUIRES(threads_mu) NO_THREAD_SAFETY_ANALYSIS {
    for (RegisteredFile* const file : files) visit(*file);
  }
  Ledger booked_by_hand;
  AllFiles all_files;
};

// Never destroyed: files may outlive static destruction.
Registry& registry() {
  static Registry* const instance = [] {
    auto* const created = new Registry;
    Guard::set_source(created->all_files);
    return created;
  }();
  return *instance;
}

}  // namespace

Status FileRegistry::add(RegisteredFile* file) {
  MutexLock threads(registry().threads_mu);
  if (registry().parked == 0) PGALLOC_RETURN_IF_ERROR(file->start_threads());
  MutexLock lock(registry().mu);
  registry().files.insert(file);
  return {};
}

void FileRegistry::remove(RegisteredFile* file) {
  MutexLock threads(registry().threads_mu);
  {
    MutexLock lock(registry().mu);
    registry().files.erase(file);
  }
  file->stop_threads();
}

Status FileRegistry::start_loaders(RegisteredFile* file, unsigned count) {
  MutexLock threads(registry().threads_mu);
  file->use_loaders(count);
  return registry().parked == 0 ? file->start_threads() : Status();
}

Status FileRegistry::start_threads(RegisteredFile* file) {
  MutexLock threads(registry().threads_mu);
  if (registry().parked > 0) return {};
  MutexLock lock(registry().mu);
  return registry().files.contains(file) ? file->start_threads() : Status();
}

std::shared_ptr<RegisteredFile> FileRegistry::find(uint64_t id) {
  MutexLock lock(registry().mu);
  for (RegisteredFile* file : registry().files) {
    if (file->id() == id) return file->share();
  }
  return nullptr;
}

void FileRegistry::park_threads() {
  Guard::instance().park();
  MutexLock threads(registry().threads_mu);
  if (++registry().parked > 1) return;
  registry().visit_files([](RegisteredFile& file) { file.stop_threads(); });
}

void FileRegistry::resume_threads() {
  {
    MutexLock threads(registry().threads_mu);
    if (registry().parked == 0) return;
    if (--registry().parked == 0) {
      registry().visit_files([](RegisteredFile& file) { file.restart_threads(); });
    }
  }
  Guard::instance().resume();
}

// The child gets a registry that no vanished thread holds, because the forking thread holds it.
void FileRegistry::hold_threads_for_fork() NO_THREAD_SAFETY_ANALYSIS {
  registry().threads_mu.lock();
}
void FileRegistry::lock_for_fork() NO_THREAD_SAFETY_ANALYSIS { registry().mu.lock(); }
void FileRegistry::unlock_in_parent() NO_THREAD_SAFETY_ANALYSIS {
  registry().mu.unlock();
  registry().threads_mu.unlock();
}
void FileRegistry::reset_in_child() NO_THREAD_SAFETY_ANALYSIS {
  Registry& registry = pgalloc::registry();
  registry.files.clear();  // they are the parent's
  registry.parked = 0;
  // The hand-booked account starts anew too; its lock may be held by a thread that is gone.
  new (&registry.booked_by_hand) Ledger;
  registry.mu.unlock();
  registry.threads_mu.unlock();
}

void FileRegistry::visit_locked(const std::function<void(RegisteredFile&)>& visit)
    NO_THREAD_SAFETY_ANALYSIS {
  for (RegisteredFile* file : registry().files) visit(*file);
}

size_t FileRegistry::count() {
  MutexLock lock(registry().mu);
  return registry().files.size();
}

DiscardSource& FileRegistry::all() { return registry().all_files; }

LedgerSnapshot FileRegistry::account() {
  LedgerSnapshot sum = registry().booked_by_hand.snapshot();
  MutexLock lock(registry().mu);
  for (const RegisteredFile* file : registry().files) sum.add(file->ledger().snapshot());
  return sum;
}

Ledger& FileRegistry::booked_by_hand() { return registry().booked_by_hand; }

// --- All files together --------------------------------------------------------------------------

namespace {

std::vector<FileInUse> files_in_use() {
  std::vector<FileInUse> files;
  MutexLock lock(registry().mu);
  files.reserve(registry().files.size());
  for (RegisteredFile* file : registry().files) {
    if (auto use = FileInUse::begin(*file)) files.push_back(std::move(*use));
  }
  return files;
}

// The file whose unpinned memory is oldest, and how old it may be at most to go before the others'.
std::optional<FileInUse> file_to_discard_from(uint64_t* order_max) {
  MutexLock lock(registry().mu);
  RegisteredFile* oldest = nullptr;
  uint64_t oldest_order = UINT64_MAX;
  *order_max = UINT64_MAX;
  for (RegisteredFile* file : registry().files) {
    const auto order = file->discarder().next_order();
    if (!order) continue;
    if (*order < oldest_order) {
      *order_max = oldest_order;
      oldest_order = *order;
      oldest = file;
    } else {
      *order_max = std::min(*order_max, *order);
    }
  }
  return oldest == nullptr ? std::nullopt : FileInUse::begin(*oldest);
}

DiscardSource::Discarded AllFiles::discard(uint64_t bytes_max, Time deadline) {
  constexpr uint64_t kBatchBytes = uint64_t{8} << 20;
  constexpr int kFruitlessMax = 8;
  int fruitless = 0;  // batches of allocations that were never touched
  Discarded result;
  while (result.given_back < bytes_max && std::chrono::steady_clock::now() < deadline) {
    const uint64_t wanted = std::min(bytes_max - result.given_back, kBatchBytes);
    uint64_t order_max = 0;
    pgalloc::Discarded batch;
    if (const auto file = file_to_discard_from(&order_max)) {
      batch = (*file)->discarder().discard(wanted, order_max);
    }
    if (batch.bytes == 0) {
      // What is oldest cannot go, and was put off: another file's may.
      for (const FileInUse& file : files_in_use()) {
        if (batch.bytes == 0) batch = file->discarder().discard(wanted, UINT64_MAX);
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

}  // namespace

uint64_t FileRegistry::discard_paid_by(std::string_view payer, uint64_t bytes_max,
                                       DiscardSource::Time deadline) {
  uint64_t given_back = 0;
  for (const FileInUse& file : files_in_use()) {
    while (given_back < bytes_max && std::chrono::steady_clock::now() < deadline) {
      const auto batch = file->discarder().discard_paid_by(payer, bytes_max - given_back);
      if (batch.bytes == 0) break;
      given_back += batch.given_back;
    }
  }
  return given_back;
}

namespace {

uint64_t AllFiles::release_kept(Time deadline) {
  uint64_t bytes = 0;
  for (const FileInUse& file : files_in_use()) bytes += file->release_kept(deadline);
  return bytes;
}

uint64_t AllFiles::sweep(uint64_t bytes_max, bool waiting) {
  uint64_t bytes = 0;
  for (const FileInUse& file : files_in_use()) {
    if (bytes < bytes_max) bytes += file->discarder().sweep(bytes_max - bytes, waiting);
  }
  return bytes;
}

bool AllFiles::any_unpinned() {
  MutexLock lock(registry().mu);
  return std::any_of(registry().files.begin(), registry().files.end(),
                     [](const RegisteredFile* file) { return file->has_unpinned(); });
}

void AllFiles::start_evictions() {
  for (const FileInUse& file : files_in_use()) {
    (void)file->release_kept(std::chrono::steady_clock::now());
    file->start_evictions_under_pressure();
  }
}

void AllFiles::wait_for_reclaim(Time deadline) {
  for (const FileInUse& file : files_in_use()) (void)file->wait_for_reclaim(deadline);
}

}  // namespace

}  // namespace pgalloc
