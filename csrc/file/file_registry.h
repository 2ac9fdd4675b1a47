// Purpose: what concerns all MemoryFiles of a process together: the sum of their accounts, giving
// memory back to the guard, and their threads and leases when the process forks.
//
// Thread safety: every function may be called from any thread.
//
// A forked child begins with an empty registry: the parent's files are not its own.
#pragma once

#include <cstdint>
#include <memory>

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

  // Called for each file in the thread that forks, just before it does: nothing may be allocated or
  // freed in a file between this and the fork, but by that thread.
  using ForkHook = void (*)(RegisteredFile& file);
  static void set_fork_hook(ForkHook hook);

  // All files, as the guard sees them.
  static DiscardSource& all();

  // The account of this process: its files, and what was booked by hand.
  static LedgerSnapshot account();
  static Ledger& booked_by_hand();
};

}  // namespace pgalloc
