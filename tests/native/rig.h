// Purpose: the components of a MemoryFile around a real memfd, without the MemoryFile: no thread runs
// unless a test starts it.
//
// Thread safety: as its components'.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "backing/backing_file.h"
#include "backing/chunk_map.h"
#include "base/clock.h"
#include "file/allocator.h"
#include "file/commit_scanner.h"
#include "file/discarder.h"
#include "file/evictables.h"
#include "file/file_state.h"
#include "file/loader.h"
#include "file/options.h"
#include "file/reclaimer.h"
#include "file/references.h"
#include "native/support.h"

namespace pgalloc::native_tests {

constexpr auto kPast = std::chrono::steady_clock::time_point::min();
// What is to happen happens long before.
inline std::chrono::steady_clock::time_point in_a_minute() {
  return std::chrono::steady_clock::now() + std::chrono::minutes(1);
}

struct Rig {
  explicit Rig(const MemoryFileOptions& options = {})
      : reclaimer(state, *file, *chunks, evictables, options.manual_zeroing),
        discarder(state, *file, *chunks, reclaimer, !options.manual_zeroing),
        scanner(state, *file, *chunks, reclaimer, clock),
        loader(state, *file, *chunks, reclaimer),
        references(state, reclaimer, discarder, loader),
        allocator(state, *file, *chunks, reclaimer, references, options) {}
  // What a test leaves behind is in order.
  ~Rig() {
    loader.stop_threads();
    reclaimer.stop();
    EXPECT_EQ(verify(), std::nullopt);
    FileLock lock(state);
    discarder.clear();
    state.pages.clear();
  }

  std::optional<std::string> verify() {
    FileLock lock(state);
    if (auto broken = state.pages.verify(file->size())) return broken;
    if (auto broken = reclaimer.verify()) return broken;
    if (auto broken = discarder.verify()) return broken;
    if (auto broken = scanner.verify()) return broken;
    return loader.verify();
  }
  // The lowest free pages.
  FileRange allocate(uint64_t count, uint32_t memcg_id = 0) {
    const auto range = allocator.allocate(
        {.length = count * page_size(), .kind = MemoryKind::kTmpfs, .memcg_id = memcg_id}, true);
    return EXPECT(range.ok()) ? *range : FileRange{};
  }
  // Commits the pages.
  void fill(FileRange range, char byte) {
    EXPECT(file->write(range, std::string(range.length(), byte).data()).ok());
  }
  std::string contents(FileRange range) {
    std::string bytes(range.length(), '?');
    const auto size =
        os::kernel().pread(file->fd(), bytes.data(), bytes.size(), static_cast<off_t>(range.start));
    EXPECT_EQ(size, static_cast<ssize_t>(bytes.size()));
    return bytes;
  }
  bool all(FileRange range, char byte) {
    return contents(range) == std::string(range.length(), byte);
  }
  // The references of a page; 0 if it is free.
  uint32_t refs(uint64_t page) {
    FileLock lock(state);
    const auto segment = state.pages.usage().find(page * page_size());
    return segment.ok() ? segment.value().refs : 0;
  }
  bool wait_for_reclaim() {
    FileLock lock(state);
    return reclaimer.wait_until_done(in_a_minute());
  }
  MemoryFileStats stats() {
    FileLock lock(state);
    return state.stats;
  }

  FileState state;
  const std::unique_ptr<BackingFile> file = std::move(*BackingFile::create_memfd());
  const std::shared_ptr<ChunkMap> chunks = std::move(*ChunkMap::reserve(kChunkSize));
  Evictables evictables;
  Clock clock;
  Reclaimer reclaimer;
  Discarder discarder;
  CommitScanner scanner;
  Loader loader;
  References references;
  Allocator allocator;
};

}  // namespace pgalloc::native_tests
