// Purpose: brings the pages of an image into a file, at once or when they are needed (section J).
//
// Thread safety: any thread; start_threads() and stop_threads() are externally synchronised (the
// registry's lock over threads).
//
// An extent is loaded as a whole, by the thread that comes first: one that needs a page of it, or a
// loader, which takes the extents in order. It reads and checks the extent without the lock; meanwhile
// the pages are arriving, and neither the reclaimer nor another thread touches them.
//
// Invariants
//   1. While pages wait or arrive, source_ is there.
//   2. The file is incomplete (FileState::gate) iff pages are pending.
//   3. A loader thread yields to threads that need pages now, but before each extent not longer than
//      yield_for() says: it gets its share while some thread waits all the time.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "backing/backing_file.h"
#include "backing/chunk_map.h"
#include "base/process_generation.h"
#include "file/extent_source.h"
#include "file/file_state.h"
#include "file/reclaimer.h"

namespace pgalloc {

namespace testing {
// While false, files start no threads that load images.
extern std::atomic<bool> loaders_allowed;
}  // namespace testing

class Loader;

// An extent on its way into a file, for the thread that decodes it. It must not outlive the file, but
// may outlive its closing.
//
// Invariants
//   1. While it exists, `parts` are arriving: no other thread loads, punches or reuses them.
//   2. When it is dropped unfinished, they wait again.
class ArrivingExtent {
 public:
  ~ArrivingExtent();
  ArrivingExtent(const ArrivingExtent&) = delete;
  ArrivingExtent& operator=(const ArrivingExtent&) = delete;

  std::span<const char> encoded() const {
    return {buffer_.data() + page_size(), head_.stored_length};
  }
  uint64_t raw_length() const { return head_.raw_length(); }
  // The extent arrives as `raw`, raw_length() bytes; or it is broken, and why. kOutOfMemory if there
  // is no room for it below the memory limits: it is as it was.
  Status deliver(std::span<const char> raw);
  void fail(Status status);

 private:
  friend class Loader;
  ArrivingExtent(Loader& loader, std::shared_ptr<const ExtentSource> source, size_t index,
                 std::vector<FileRange> parts)
      : loader_(loader), source_(std::move(source)), index_(index), parts_(std::move(parts)) {}

  Loader& loader_;
  const std::shared_ptr<const ExtentSource> source_;
  const size_t index_;
  const std::vector<FileRange> parts_;
  const uint32_t generation_ = process_generation();
  image::ExtentHead head_;
  Buffer buffer_;
  bool settled_ = false;
};

class Loader {
 public:
  using Time = std::chrono::steady_clock::time_point;

  Loader(FileState& state, BackingFile& file, ChunkMap& chunks, Reclaimer& reclaimer)
      : state_(state), file_(file), chunks_(chunks), reclaimer_(reclaimer) {}
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  // Writes a whole extent. kOutOfMemory if there is no room for it below the memory limits. REQUIRES: the file is not shared yet.
  Status write_restored(const image::ExtentHead& head, const char* raw) EXCLUDES(file_lock);

  // From here on, pages of the extents are pending, and load() and load_next() bring them in.
  // REQUIRES: the file is not shared yet.
  Status begin(std::shared_ptr<const ExtentSource> source) EXCLUDES(file_lock);
  // How many threads start_threads() starts, while pages are pending.
  void use_threads(unsigned count) { thread_count_ = count; }
  // For how long load_next() lets threads go first that need pages right now.
  void yield_for(std::chrono::milliseconds most) { yield_max_ = most; }
  void start_threads() EXCLUDES(file_lock);
  void stop_threads();

  // Loads what `range` still waits for, and waits for what others are loading. True: it is all
  // there. False: the deadline passed, or *encoded has to be decoded first. The error of a page that
  // could not be loaded, if there is one in `range`, unless those are to be ignored. kOutOfMemory if
  // there is no room now: what waits goes on waiting.
  Result<bool> load(FileRange range, Time deadline, std::unique_ptr<ArrivingExtent>* encoded,
                    bool ignore_broken = false) EXCLUDES(file_lock);
  // Loads one extent, the next of all. False when none waits, or the threads are to stop. kOutOfMemory
  // as load().
  Result<bool> load_next(std::unique_ptr<ArrivingExtent>* encoded) EXCLUDES(file_lock);

  // Whether pages are still on their way.
  bool loading() const EXCLUDES(file_lock);
  struct Progress {
    uint64_t total_bytes = 0;
    uint64_t pending_bytes = 0;
    uint64_t dropped_bytes = 0;  // freed or decommitted before they were loaded
    uint64_t failed_bytes = 0;
  };
  Progress progress() const EXCLUDES(file_lock);
  int waiters() const { return waiters_; }  // threads that need pages right now

  // For decommit: contents of `range` that are still in the image are not loaded from here to
  // settle_leaving(); waits for those that are arriving, until the file is closed.
  std::vector<FileRange> take_leaving(FileRange range) REQUIRES(file_lock);
  // With `gone`, they are not needed any more.
  void settle_leaving(const std::vector<FileRange>& taken, bool gone) REQUIRES(file_lock);
  // Some pages are not pending any more, or may be taken by the reclaimer.
  void pending_changed() REQUIRES(file_lock);
  bool used() const REQUIRES(file_lock) { return source_ != nullptr; }
  // The file is being closed: what waits gives up; all is forgotten.
  void notify_waiters() { changed_.notify_all(); }
  void clear() REQUIRES(file_lock) { drop_source(); }

  // What is broken of the invariants.
  std::optional<std::string> verify() const REQUIRES(file_lock);

 private:
  friend class ArrivingExtent;
  class Waiter;
  void run() EXCLUDES(file_lock);
  void yield_to_waiters() REQUIRES(file_lock);
  std::unique_ptr<ArrivingExtent> take_extent(uint64_t waiting) REQUIRES(file_lock);
  // Reads the extent; an unencoded one is brought in at once. What is left needs decoding.
  Result<std::unique_ptr<ArrivingExtent>> fetch(std::unique_ptr<ArrivingExtent> extent)
      EXCLUDES(file_lock);
  Status deliver(ArrivingExtent& extent, const char* raw) EXCLUDES(file_lock);
  Status write(const image::ExtentHead& head, std::span<const FileRange> parts, const char* raw)
      EXCLUDES(file_lock);
  void fail_arrival(ArrivingExtent& extent, Status status) EXCLUDES(file_lock);
  void end(ArrivingExtent& extent) EXCLUDES(file_lock);
  void drop_source() REQUIRES(file_lock) {
    source_.reset();
    spare_buffers_.clear();
  }
  void warn_of_no_memory() EXCLUDES(file_lock);

  FileState& state_;
  BackingFile& file_;
  ChunkMap& chunks_;
  Reclaimer& reclaimer_;
  std::shared_ptr<const ExtentSource> source_ GUARDED_BY(file_lock);
  // Of extents that have arrived, for the next: room that is new is as much work as reading into it.
  std::vector<Buffer> spare_buffers_ GUARDED_BY(file_lock);
  std::vector<Status> errors_ GUARDED_BY(file_lock);
  uint64_t cursor_ GUARDED_BY(file_lock) = 0;
  CondVar changed_;
  std::atomic<int> waiters_{0};
  unsigned thread_count_ = 0;
  std::chrono::milliseconds yield_max_{2};
  std::vector<std::thread> threads_;
  std::atomic<bool> stops_{false};
};

}  // namespace pgalloc
