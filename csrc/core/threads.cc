// The background threads of a file: the reclaimer, and the loaders of an image.
#include <system_error>

#include "core/memory_file.h"
#include "os/thread.h"

namespace pgalloc {

namespace testing {
constinit std::atomic<bool> loaders_allowed{true};
}

Status MemoryFile::start_threads() {
  MutexLock thread_lock(thread_mu_);
  PGALLOC_RETURN_IF_ERROR(start_reclaimer());
  start_loaders();
  return {};
}

void MemoryFile::stop_threads() {
  MutexLock thread_lock(thread_mu_);
  stop_loaders();
  stop_reclaimer();
}

void MemoryFile::restart_threads() {
  const Status started = start_threads();
  if (started.ok()) return;
  MutexLock lock(mu_);
  warn("the reclaimer thread could not be started again: freed pages stay in memory");
}

Status MemoryFile::start_reclaimer() {
  if (reclaimer_ != nullptr) return {};
  MutexLock lock(mu_);
  if (closed()) return {};
  reclaimer_stops_ = false;
  try {
    reclaimer_ = std::make_unique<std::thread>([this] { reclaim_loop(); });
  } catch (const std::system_error& error) {
    return Status::system_error(error.code().value(), "pthread_create");
  }
  reclaimer_runs_ = true;
  return {};
}

void MemoryFile::stop_reclaimer() {
  if (reclaimer_ == nullptr) return;
  {
    MutexLock lock(mu_);
    reclaimer_stops_ = true;
    reclaimer_work_.notify_all();
  }
  reclaimer_->join();
  os::wait_until_gone(reclaimer_id_);
  reclaimer_.reset();
  MutexLock lock(mu_);
  reclaimer_runs_ = false;
  waste_shrank_.notify_all();
}

void MemoryFile::use_loaders(unsigned count) {
  MutexLock thread_lock(thread_mu_);
  loader_count_ = count;
}

// Pages also arrive without loaders, when somebody needs them: no thread to be had is no failure.
void MemoryFile::start_loaders() {
  if (!loaders_.empty() || closed() || !loading()) return;
  loaders_stop_ = false;  // for threads from outside, too
  if (!testing::loaders_allowed) return;
  try {
    for (unsigned i = 0; i < loader_count_; ++i) loaders_.emplace_back([this] { load_loop(); });
  } catch (const std::system_error&) {
    loader_count_ = static_cast<unsigned>(loaders_.size());  // they do it all
  }
}

void MemoryFile::stop_loaders() {
  loaders_stop_ = true;
  for (std::thread& loader : loaders_) {
    loader.join();
  }
  loaders_.clear();
}

}  // namespace pgalloc
