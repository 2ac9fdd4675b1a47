// Purpose: the threads that look on while the workers work: they ask for usage and statistics, and
// prove the invariants, at the worst moments there are.
//
// Thread safety: each function is one thread's whole life.
#pragma once

#include <atomic>

#include "file/memory_file.h"

namespace pgalloc::torture {

// Commit scans, of everything or of one memory cgroup, one after the other.
void watch_usage(MemoryFile& file, const std::atomic<bool>& stop);
// MemoryFile::verify(), again and again.
void watch_invariants(MemoryFile& file, const std::atomic<bool>& stop);

}  // namespace pgalloc::torture
