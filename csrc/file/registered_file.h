// Purpose: what the registry of files asks of each file: its threads, its account, and memory to give
// back. MemoryFile is the only kind.
//
// Thread safety: any thread. start_threads(), stop_threads(), restart_threads() and use_loaders() are
// called by one thread at a time (the registry's lock over threads).
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "base/status.h"
#include "file/discarder.h"
#include "pages/ledger.h"

namespace pgalloc {

class RegisteredFile {
 public:
  using Time = std::chrono::steady_clock::time_point;

  virtual uint64_t id() const = 0;
  // nullptr while it is being destroyed.
  virtual std::shared_ptr<RegisteredFile> share() = 0;

  virtual Status start_threads() = 0;
  virtual void stop_threads() = 0;
  virtual void restart_threads() = 0;  // a failure becomes a warning
  // How many threads load an image, from the next start_threads() on.
  virtual void use_loaders(unsigned count) = 0;

  // False if closed; else close() waits until end_use().
  virtual bool begin_use() = 0;
  virtual void end_use() = 0;

  virtual const Ledger& ledger() const = 0;
  virtual Discarder& discarder() = 0;
  virtual bool has_unpinned() const = 0;
  // Memory is short: freed pages that wait for a new owner go. The bytes that went until then.
  virtual uint64_t release_kept(Time deadline) = 0;
  // Row A4: of users that are to be asked under memory pressure.
  virtual void start_evictions_under_pressure() = 0;
  virtual bool wait_for_reclaim(std::optional<Time> deadline) = 0;

 protected:
  ~RegisteredFile() = default;
};

// A file that is not closed meanwhile: close() waits.
class FileInUse {
 public:
  // Nothing if it is closed.
  static std::optional<FileInUse> begin(RegisteredFile& file) {
    if (!file.begin_use()) return std::nullopt;
    return FileInUse(&file);
  }
  FileInUse(FileInUse&& other) noexcept : file_(std::exchange(other.file_, nullptr)) {}
  FileInUse& operator=(FileInUse&&) = delete;
  ~FileInUse() {
    if (file_ != nullptr) file_->end_use();
  }
  RegisteredFile* operator->() const { return file_; }

 private:
  explicit FileInUse(RegisteredFile* file) : file_(file) {}

  RegisteredFile* file_;
};

}  // namespace pgalloc
