// Purpose: where the workers get ranges from and leave them: the file, and between it and them, on
// demand, a planted bug that the run must find.
//
// Thread safety: any thread.
#pragma once

#include <atomic>
#include <optional>
#include <string_view>

#include "base/mutex.h"
#include "file/memory_file.h"

namespace pgalloc::torture {

enum class Plant {
  kNone,
  kShared,  // a range that has an owner is handed out again
  kLost,    // a reference is never dropped
  kDirty,   // a punch does nothing, and says it did
  kEpoch,   // a commit scan books pages that are gone, as if it did not notice that they went
};

std::optional<Plant> plant_by_name(std::string_view name);
// Swaps system calls for the plants that need it. Before the first file is made.
void install(Plant plant);

class Source {
 public:
  Source(MemoryFile& file, Plant plant) : file_(file), plant_(plant) {}

  Result<FileRange> allocate(const AllocateRequest& request);
  // Drops one reference.
  void drop(FileRange range);

 private:
  bool strikes();

  MemoryFile& file_;
  const Plant plant_;
  std::atomic<uint64_t> calls_{0};
  Mutex mu_{LockRank::kRegistry};
  FileRange latest_ GUARDED_BY(mu_);
};

}  // namespace pgalloc::torture
