// Purpose: a call that uses the descriptor without the file's lock: close() waits for it.
//
// Thread safety: made with the lock held, destroyed without it.
#pragma once

#include <optional>

#include "file/file_state.h"

namespace pgalloc {

class Operation {
 public:
  // REQUIRES: the file is open.
  explicit Operation(FileState& state) REQUIRES(file_lock) : state_(state) { ++state_.operations; }
  ~Operation() EXCLUDES(file_lock) {
    const FileLock lock(state_);
    if (--state_.operations == 0 && state_.closed()) state_.operations_ended.notify_all();
  }
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;

  // Begins one, unless the file is closed.
  static Status begin(FileState& state, std::optional<Operation>& operation) EXCLUDES(file_lock) {
    const FileLock lock(state);
    PGALLOC_RETURN_IF_ERROR(state.check_open());
    operation.emplace(state);
    return {};
  }

 private:
  FileState& state_;
};

}  // namespace pgalloc
