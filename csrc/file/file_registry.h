// Purpose: what concerns all MemoryFiles of a process together: the sum of their accounts, giving
// memory back to the guard, and stopping their threads when the process forks.
//
// Thread safety: every function may be called from any thread.
//
// Two locks: one over starting and ending threads of files, one over the list of files. A thread that
// ends may need the list (it gives memory back), so that it is never held meanwhile.
//
// A forked child begins with an empty registry: the parent's files are not its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

#include "base/status.h"
#include "guard/discard_source.h"
#include "pages/ledger.h"

namespace pgalloc {

class RegisteredFile;

class FileRegistry {
 public:
  // Starts the file's background thread too. On failure the file is not added.
  static Status add(RegisteredFile* file);
  static void remove(RegisteredFile* file);
  // Has `count` threads load what is pending in the file.
  static Status start_loaders(RegisteredFile* file, unsigned count);

  // The file of this name; nullptr if there is none, or if it is being destroyed.
  static std::shared_ptr<RegisteredFile> find(uint64_t id);

  // Stops the background threads of all files, and starts them again. Calls nest: several threads
  // may be forking. Between the two, new files get no thread.
  static void park_threads();
  static void resume_threads();

  // Has the file's threads start that could not be started when resume_threads() tried.
  static Status start_threads(RegisteredFile* file);

  // Around a fork (sharing/forks.h): no file comes or goes from here to the last two. The first comes
  // before the guard's lock is taken.
  static void hold_threads_for_fork();
  static void lock_for_fork();
  static void unlock_in_parent();
  static void reset_in_child();
  // REQUIRES: lock_for_fork().
  static void visit_locked(const std::function<void(RegisteredFile&)>& visit);

  static size_t count();

  // All files, as the guard sees them.
  static DiscardSource& all();
  // Discards of all files what this payer pays for, until `bytes_max` are back with the kernel or the
  // deadline has passed. The bytes that went.
  static uint64_t discard_paid_by(std::string_view payer, uint64_t bytes_max,
                                  DiscardSource::Time deadline);

  // The account of this process: its files, and what was booked by hand.
  static LedgerSnapshot account();
  static Ledger& booked_by_hand();
};

}  // namespace pgalloc
