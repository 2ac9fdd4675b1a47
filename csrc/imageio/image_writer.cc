#include "imageio/image_writer.h"

#include <errno.h>
#include <fcntl.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <system_error>

#include "base/crc32c.h"
#include "image/encode.h"
#include "os/syscalls.h"
#include "os/thread.h"

namespace pgalloc {

using os::sys;

namespace {

// What one extent stands for: short, because a thread that waits for a page waits for its extent,
// and fit for a processor's cache; but a head takes a page.
constexpr uint64_t kSpan = uint64_t{1} << 20;
static_assert(image::kExtentSpan % kSpan == 0);

// In huge areas an extent is one huge page, so that it alone says whether all of the page is stored.
uint64_t span_of_huge_areas() {
  return huge_page_size() <= image::kExtentSpan ? huge_page_size() : kSpan;
}

}  // namespace

ImageWriter::ImageWriter(std::shared_ptr<MemoryFile> file, const MemoryFile::Capture& capture,
                         SaveOptions options, std::unique_ptr<ImageSink> sink)
    : file_(std::move(file)),
      keep_zeros_(options.keep_zeros),
      sink_(std::move(sink)),
      file_size_(capture.file_size) {
  metadata_.restore_id = std::move(options.restore_id);
  metadata_.hooks = std::move(options.hooks);
  metadata_.usage.reserve(capture.segments.size());
  for (const auto& [range, use, size] : capture.segments) {
    metadata_.usage.push_back(
        {range, use.refs, use.memcg_id, use.kind, use.committed, size == PageSize::kHuge});
  }
}

ImageWriter::~ImageWriter() {
  if (generation_ != process_generation()) {
    // A forked child: the threads and locks are the parent's.
    for (std::thread& thread : threads_) thread.detach();
    return;
  }
  give_up();
  for (std::thread& thread : threads_) thread.join();
}

unsigned ImageWriter::start(unsigned threads) {
  const os::WithoutSignals quiet;
  for (unsigned started = 0; started < threads; ++started) {
    try {
      threads_.emplace_back([this] { work(); });
    } catch (const std::system_error&) {
      return started;  // no more to be had
    }
  }
  return threads;
}

void ImageWriter::work() try {
  Item item;
  while (true) {
    const Result<bool> taken = next(item);
    if (!taken.ok() || !*taken) return;
    if (!finish(item).ok()) return;
  }
} catch (const std::bad_alloc&) {
  fail(Status::system_error(ENOMEM, "malloc"));
}

void ImageWriter::fail(Status&& status) {
  {
    MutexLock lock(order_mu_);
    if (done_ || failure_) return;
    failure_ = std::move(status);
    failed_.store(true, std::memory_order_release);
    order_changed_.notify_all();
  }
  sink_->cancel();
}

std::optional<Status> ImageWriter::wait(Deadline deadline) {
  MutexLock lock(order_mu_);
  while (!done_ && !failure_) {
    if (!order_changed_.wait_until(order_mu_, deadline)) break;
  }
  if (failure_) return failure_->clone();
  return done_ ? std::optional<Status>(Status()) : std::nullopt;
}

// --- Taking items --------------------------------------------------------------------------------

Result<bool> ImageWriter::next(Item& item) {
  std::vector<FileRange> parts;
  {
    MutexLock lock(plan_mu_);
    if (failed() || back_taken_) return false;
    item.number = items_++;
    item.what = Item::What::kFront;
    if (item.number > 0) {
      Result<std::vector<FileRange>> planned = next_parts();
      if (!planned.ok()) {
        lock.unlock();
        fail(planned.status().clone());
        return std::move(planned).status();
      }
      parts = std::move(*planned);
      item.what = parts.empty() ? Item::What::kBack : Item::What::kExtent;
      back_taken_ = parts.empty();
    }
  }
  if (item.what != Item::What::kExtent) return true;
  MemoryFile::Access access;
  Status status = file_->begin_access(access);
  if (status.ok()) {
    ExtentBuilder builder(*access.file, *access.chunks, keep_zeros_);
    status = builder.build(parts, item.extent);
  }
  if (!status.ok()) {
    fail(status.clone());
    return status;
  }
  return true;
}

// The used ranges in the next span of the grid that may have data; none at the end.
Result<std::vector<FileRange>> ImageWriter::next_parts() {
  std::vector<FileRange> parts;
  const std::vector<image::Usage>& usage = metadata_.usage;
  skip_to(position_);
  if (segment_ < usage.size() && !keep_zeros_) {
    const Result<uint64_t> data = next_data(position_);
    if (!data.ok()) return data.status().clone();
    skip_to(*data);
  }
  if (segment_ == usage.size()) return parts;
  const uint64_t span = usage[segment_].huge ? span_of_huge_areas() : kSpan;
  const uint64_t end = align_down(position_, span) + span;
  while (segment_ < usage.size() && position_ < end) {
    const FileRange part{position_, std::min(end, usage[segment_].range.end)};
    parts.push_back(part);
    skip_to(part.end);
  }
  return parts;
}

// The first offset from `offset` on that may have data; kMaxOffset if there is none.
Result<uint64_t> ImageWriter::next_data(uint64_t offset) const {
  MemoryFile::Access access;
  PGALLOC_RETURN_IF_ERROR(file_->begin_access(access));
  const off_t data = sys().lseek(access.file->fd(), static_cast<off_t>(offset), SEEK_DATA);
  if (data < 0) return errno == ENXIO ? kMaxOffset : offset;  // where it cannot be told: everything
  return static_cast<uint64_t>(data);
}

// The first used offset from `offset` on.
void ImageWriter::skip_to(uint64_t offset) {
  const std::vector<image::Usage>& usage = metadata_.usage;
  while (segment_ < usage.size() && usage[segment_].range.end <= offset) ++segment_;
  position_ = segment_ == usage.size() ? offset : std::max(offset, usage[segment_].range.start);
}

// --- Finishing items -----------------------------------------------------------------------------

Status ImageWriter::finish(Item& item, std::span<const char> encoded) {
  Status status;
  switch (item.what) {
    case Item::What::kFront:
      status = write_front();
      break;
    case Item::What::kExtent:
      status = write_extent(item, encoded);
      break;
    case Item::What::kBack:
      status = write_back(item.number);
      break;
  }
  if (status.ok()) return status;
  fail(status.clone());
  // All callers get the first failure; a thread may only have noticed a consequence of it.
  MutexLock lock(order_mu_);
  return failure_ ? failure_->clone() : std::move(status);
}

bool ImageWriter::wait_for_turn(uint64_t number) {
  while (placed_ < number && !failure_) order_changed_.wait(order_mu_);
  return !failure_;
}

void ImageWriter::pass_turn() {
  ++placed_;
  order_changed_.notify_all();
}

Status ImageWriter::write_front() {
  if (image::metadata_length(metadata_) > image::kMetadataLengthMax) {
    return Status::error(ErrorCode::kSnapshot,
                         "usage set and hooks take more than an image can hold of them");
  }
  image::Header header;
  const std::string bytes = image::encode_front(file_size_, metadata_, &header);
  PGALLOC_RETURN_IF_ERROR(sink_->write(0, bytes));
  MutexLock lock(order_mu_);
  header_ = header;
  image_size_ = bytes.size();
  pass_turn();
  return {};
}

Status ImageWriter::write_extent(Item& item, std::span<const char> encoded) {
  auto& [head, buffer, zero_pages] = item.extent;
  const uint64_t stored_pages = head.map.count();
  if (stored_pages > 0) {
    char* data = buffer.data() + page_size();
    head.encoding = image::Encoding::kRaw;
    head.stored_length = head.raw_length();
    if (!encoded.empty() && align_up(encoded.size(), page_size()) < head.raw_length()) {
      head.encoding = image::Encoding::kZstd;
      head.stored_length = encoded.size();
      std::memcpy(data, encoded.data(), encoded.size());
      std::memset(data + encoded.size(), 0, head.stored_bytes() - encoded.size());
    }
    head.data_crc = crc32c(data, head.stored_bytes());
  }

  MutexLock lock(order_mu_);
  if (!wait_for_turn(item.number)) return failure_->clone();
  zero_pages_ += zero_pages;
  if (stored_pages == 0) {
    pass_turn();
    return {};
  }
  head.offset = image_size_;
  image::encode_extent_head(&head, buffer.data());
  index_.push_back(image::index_entry(head));
  image_size_ = head.end();
  ++writing_;
  // A sink that takes bytes in order only gets them while it is our turn.
  if (sink_->random_access()) pass_turn();
  lock.unlock();
  Status status = sink_->write(head.offset, {buffer.data(), head.end() - head.offset});
  // Before the count falls: a thread that waits for it must not finish an image that lacks it.
  if (!status.ok()) fail(status.clone());
  lock.lock();
  if (!sink_->random_access()) pass_turn();
  --writing_;
  order_changed_.notify_all();
  return status;
}

Status ImageWriter::write_back(uint64_t number) {
  std::string bytes;
  uint64_t offset = 0;
  {
    MutexLock lock(order_mu_);
    if (!wait_for_turn(number)) return failure_->clone();
    while (writing_ > 0 && !failure_) order_changed_.wait(order_mu_);
    if (failure_) return failure_->clone();
    offset = image_size_;
    bytes = image::encode_back(header_, index_, offset, zero_pages_);
  }
  PGALLOC_RETURN_IF_ERROR(sink_->write(offset, bytes));
  PGALLOC_RETURN_IF_ERROR(sink_->finish());
  MutexLock lock(order_mu_);
  done_ = true;
  order_changed_.notify_all();
  return {};
}

}  // namespace pgalloc
