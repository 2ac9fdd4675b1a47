// Purpose: saves a file: cuts it into extents, has several threads read and check them, and brings
// the parts of the image to a sink in order.
//
// Thread safety: any thread.
//
// The work is a row of items: the front of the image, its extents, its back. A thread takes the next
// one, reads the pages, and finishes it. An item gets its place in the image when all before it have
// theirs; a sink with random access is then written by several threads at once. Extents may pass
// through an encoder outside the core in between.
//
// Invariants
//   1. Items are numbered from 0 as they are taken; placed_ of them have their place.
//   2. The back comes last, once; when it is written, done_ is set.
//   3. After a failure nothing is written any more, and failure_ says what happened.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/process_generation.h"
#include "base/status.h"
#include "file/memory_file.h"
#include "image/format.h"
#include "imageio/extent_builder.h"
#include "imageio/image_sink.h"

namespace pgalloc {

struct SaveOptions {
  bool keep_zeros = false;  // store committed pages even if they are zero
  std::string restore_id;
  std::vector<image::Hook> hooks;
};

class ImageWriter {
 public:
  using Deadline = std::chrono::steady_clock::time_point;

  struct Item {
    enum class What { kFront, kExtent, kBack };
    What what = What::kFront;
    uint64_t number = 0;
    ExtentBuilder::Extent extent;

    // The pages of an extent, for an encoder.
    std::span<const char> raw() const {
      return {extent.buffer.data() + page_size(), extent.head.raw_length()};
    }
  };

  // `capture`: what MemoryFile::capture() returned.
  ImageWriter(std::shared_ptr<MemoryFile> file, const MemoryFile::Capture& capture,
              SaveOptions options, std::unique_ptr<ImageSink> sink);
  // Gives up what is not done, and waits for the threads.
  ~ImageWriter();
  ImageWriter(const ImageWriter&) = delete;
  ImageWriter& operator=(const ImageWriter&) = delete;

  // Saves with threads of the core's own: as many as are to be had, which are counted.
  unsigned start(unsigned threads);
  // Nothing before the deadline; then how it ended.
  std::optional<Status> wait(Deadline deadline) EXCLUDES(order_mu_);
  // Needs no memory: the destructor does so.
  void give_up() EXCLUDES(order_mu_) { fail(std::move(given_up_)); }

  // For threads from outside: the next item, in `item`. False when there is none left.
  Result<bool> next(Item& item) EXCLUDES(plan_mu_, order_mu_);
  // `encoded`: what stands for the raw pages, one zstd frame; it is used if it is shorter.
  Status finish(Item& item, std::span<const char> encoded = {}) EXCLUDES(order_mu_);

 private:
  void work();
  void fail(Status&& status) EXCLUDES(order_mu_);  // takes it only if it is the first
  bool failed() const { return failed_.load(std::memory_order_acquire); }
  Result<std::vector<FileRange>> next_parts() REQUIRES(plan_mu_);
  Result<uint64_t> next_data(uint64_t offset) const;
  void skip_to(uint64_t offset) REQUIRES(plan_mu_);
  Status write_front() EXCLUDES(order_mu_);
  Status write_extent(Item& item, std::span<const char> encoded) EXCLUDES(order_mu_);
  Status write_back(uint64_t number) EXCLUDES(order_mu_);
  // Waits until every item before `number` has its place. False after a failure.
  bool wait_for_turn(uint64_t number) REQUIRES(order_mu_);
  void pass_turn() REQUIRES(order_mu_);

  const std::shared_ptr<MemoryFile> file_;
  const bool keep_zeros_;
  const std::unique_ptr<ImageSink> sink_;
  const uint32_t generation_ = process_generation();
  image::Metadata metadata_;
  const uint64_t file_size_;
  std::vector<std::thread> threads_;

  Mutex plan_mu_{LockRank::kImagePlan};
  uint64_t items_ GUARDED_BY(plan_mu_) = 0;
  size_t segment_ GUARDED_BY(plan_mu_) = 0;     // where the next extent begins: in this segment,
  uint64_t position_ GUARDED_BY(plan_mu_) = 0;  // at this offset
  bool back_taken_ GUARDED_BY(plan_mu_) = false;

  Mutex order_mu_{LockRank::kImageOrder};
  CondVar order_changed_;
  uint64_t placed_ GUARDED_BY(order_mu_) = 0;
  uint64_t image_size_ GUARDED_BY(order_mu_) = 0;
  uint64_t writing_ GUARDED_BY(order_mu_) = 0;  // items that have a place and are being written
  std::vector<image::IndexEntry> index_ GUARDED_BY(order_mu_);
  uint64_t zero_pages_ GUARDED_BY(order_mu_) = 0;
  image::Header header_ GUARDED_BY(order_mu_);
  bool done_ GUARDED_BY(order_mu_) = false;
  std::optional<Status> failure_ GUARDED_BY(order_mu_);
  std::atomic<bool> failed_{false};
  Status given_up_ = Status::error(ErrorCode::kSnapshot, "the save was given up");
};

}  // namespace pgalloc
