// Purpose: MemoryFile::Operation, a call that uses the descriptor without the metadata lock: close()
// waits for it. For the files of the MemoryFile class only.
//
// Thread safety: made with the lock held, destroyed without it.
#pragma once

#include "core/memory_file.h"

namespace pgalloc {

class MemoryFile::Operation {
 public:
  // REQUIRES: file.mu_ is held, and the file is open.
  explicit Operation(const MemoryFile& file) REQUIRES(file.mu_) : file_(file) {
    ++file_.operations_;
  }
  ~Operation() NO_THREAD_SAFETY_ANALYSIS {
    if (file_.forked()) return;
    MutexLock lock(file_.mu_);
    if (--file_.operations_ == 0 && file_.closed()) file_.operations_ended_.notify_all();
  }
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;

 private:
  const MemoryFile& file_;
};

// Begins one, unless the file is closed or another process's.
inline Status MemoryFile::begin_operation(std::optional<Operation>& operation) const {
  PGALLOC_RETURN_IF_ERROR(check_open());
  MutexLock lock(mu_);
  PGALLOC_RETURN_IF_ERROR(check_open());
  operation.emplace(*this);
  return {};
}

}  // namespace pgalloc
