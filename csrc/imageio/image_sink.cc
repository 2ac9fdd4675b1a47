#include "imageio/image_sink.h"

#include <algorithm>
#include <utility>

#include "imageio/lost_image.h"
#include "os/transfer.h"

namespace pgalloc {

Status FileSink::write(uint64_t offset, std::span<const char> bytes) {
  if (!file_->file().intact()) return lost_image(file_->file().fd());
  return os::write_at(file_->file().fd(), offset, bytes.data(), bytes.size());
}

Status StreamSink::write(uint64_t, std::span<const char> bytes) {
  constexpr size_t kBlockMax = size_t{8} << 20;
  MutexLock lock(mu_);
  if (keeps_) {
    kept_.append(bytes.data(), bytes.size());
    return {};
  }
  while (!bytes.empty()) {
    const std::span<const char> block = bytes.first(std::min(bytes.size(), kBlockMax));
    bytes = bytes.subspan(block.size());
    offered_ = block;
    changed_.notify_all();
    while (taking_ || (offered_ && !ended_)) changed_.wait(mu_);
    offered_.reset();
    if (ended_) return Status::error(ErrorCode::kSnapshot, "the save was given up");
  }
  return {};
}

Status StreamSink::finish() {
  MutexLock lock(mu_);
  ended_ = true;
  changed_.notify_all();
  return {};
}

void StreamSink::keep() {
  MutexLock lock(mu_);
  keeps_ = true;
}

std::string StreamSink::take_kept() {
  MutexLock lock(mu_);
  return std::exchange(kept_, {});
}

void StreamSink::cancel() { (void)finish(); }

StreamSink::State StreamSink::wait(Deadline deadline, std::span<const char>* bytes) {
  MutexLock lock(mu_);
  while (!offered_ && !ended_) {
    if (!changed_.wait_until(mu_, deadline)) break;
  }
  if (ended_) return State::kEnd;
  if (!offered_) return State::kNothingYet;
  *bytes = *offered_;
  taking_ = true;
  return State::kBytes;
}

void StreamSink::take_done() {
  MutexLock lock(mu_);
  offered_.reset();
  taking_ = false;
  changed_.notify_all();
}

}  // namespace pgalloc
