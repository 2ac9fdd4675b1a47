// Purpose: where the bytes of an image go.
//
// Thread safety: write() may be called by several threads; take() by one.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/mutex.h"
#include "base/status.h"
#include "imageio/new_file.h"

namespace pgalloc {

class ImageSink {
 public:
  virtual ~ImageSink() = default;
  // Whether bytes may come in any order, from several threads at once.
  virtual bool random_access() const = 0;
  virtual Status write(uint64_t offset, std::span<const char> bytes) = 0;
  // After the last write().
  virtual Status finish() = 0;
  // Makes every write() from now on fail, and those that wait.
  virtual void cancel() = 0;
};

// A file that appears when it is complete.
class FileSink : public ImageSink {
 public:
  explicit FileSink(std::unique_ptr<NewFile> file) : file_(std::move(file)) {}
  bool random_access() const override { return true; }
  Status write(uint64_t offset, std::span<const char> bytes) override;
  Status finish() override { return file_->publish(); }
  void cancel() override {}

 private:
  const std::unique_ptr<NewFile> file_;
};

// Hands the bytes in order to a reader in another thread, which writes them wherever it likes.
class StreamSink : public ImageSink {
 public:
  using Deadline = std::chrono::steady_clock::time_point;

  bool random_access() const override { return false; }
  // Returns when the reader has taken the bytes.
  Status write(uint64_t offset, std::span<const char> bytes) override EXCLUDES(mu_);
  Status finish() override EXCLUDES(mu_);
  void cancel() override EXCLUDES(mu_);

  // From now on write() keeps the bytes for take_kept(), and waits for no reader: for a save in which
  // one thread does it all.
  void keep() EXCLUDES(mu_);
  // What has been kept since the last call.
  std::string take_kept() EXCLUDES(mu_);

  enum class State { kBytes, kNothingYet, kEnd };
  // kBytes: *bytes stays as it is until take_done(), whatever happens to the save meanwhile.
  State wait(Deadline deadline, std::span<const char>* bytes) EXCLUDES(mu_);
  void take_done() EXCLUDES(mu_);

 private:
  Mutex mu_{LockRank::kImageSink};
  CondVar changed_;
  std::optional<std::span<const char>> offered_ GUARDED_BY(mu_);
  bool taking_ GUARDED_BY(mu_) = false;  // the consumer looks at them
  bool ended_ GUARDED_BY(mu_) = false;
  bool keeps_ GUARDED_BY(mu_) = false;
  std::string kept_ GUARDED_BY(mu_);
};

}  // namespace pgalloc
