#include "sharing/owner_link.h"

#include <errno.h>

#include <system_error>

#include "os/retry.h"
#include "os/syscalls.h"
#include "os/thread.h"

namespace pgalloc {

using os::sys;

namespace {

constexpr size_t kPacketBytesMax = 32768;
constexpr auto kRetryPeriod = std::chrono::milliseconds(2);  // while the owner does not read

}  // namespace

Result<std::shared_ptr<OwnerLink>> OwnerLink::create(int fd, std::string prefix) {
  const int own = sys().duplicate(fd);
  if (own < 0) return Status::system_error(errno, "fcntl");
  return std::shared_ptr<OwnerLink>(new OwnerLink(own, std::move(prefix)), destroy);
}

void OwnerLink::destroy(OwnerLink* link) {
  if (link->forked()) {
    // Its lock and its thread are in the state the parent had them in: leave them alone.
    sys().close(link->fd_);
    return;
  }
  // What its files have let go of before they went: a moment for it to get out.
  (void)link->flush(std::chrono::steady_clock::now() + std::chrono::milliseconds(200));
  link->break_off();
  link->park();
  sys().close(link->fd_);
  delete link;
}

void OwnerLink::give_back(uint64_t file, FileRange range) {
  if (forked()) return;
  MutexLock lock(mu_);
  if (broken()) return;
  queue_.push_back({file, range});
  if (thread_ == nullptr) {
    start_thread();
  } else {
    changed_.notify_all();
  }
}

bool OwnerLink::flush(std::chrono::steady_clock::time_point deadline) {
  if (forked()) return true;
  MutexLock lock(mu_);
  while (!queue_.empty() || sending_) {
    if (thread_ == nullptr) start_thread();
    if (!changed_.wait_until(mu_, deadline)) return queue_.empty() && !sending_;
  }
  return true;
}

void OwnerLink::break_off() {
  if (forked()) return;
  MutexLock lock(mu_);
  broken_.store(true, std::memory_order_release);
  queue_.clear();
  changed_.notify_all();
}

void OwnerLink::park() {
  if (forked()) return;
  std::unique_ptr<std::thread> thread;
  {
    MutexLock lock(mu_);
    parked_ = true;
    changed_.notify_all();
    thread = std::move(thread_);
  }
  if (thread == nullptr) return;
  thread->join();
  os::wait_until_gone(thread_id_);
}

void OwnerLink::resume() {
  if (forked()) return;
  MutexLock lock(mu_);
  parked_ = false;
  if (!queue_.empty() && thread_ == nullptr) start_thread();
}

// Without a thread the queue waits for the next call that gives something back, or flushes.
void OwnerLink::start_thread() {
  if (parked_) return;
  try {
    thread_ = std::make_unique<std::thread>([this] { send_loop(); });
  } catch (const std::system_error&) {
    thread_ = nullptr;
  }
}

std::string OwnerLink::take_packet() {
  constexpr size_t kEntryBytes = 3 * sizeof(uint64_t);
  std::string packet = prefix_;
  const auto append = [&](uint64_t number) {
    packet.append(reinterpret_cast<const char*>(&number), sizeof number);
  };
  while (!queue_.empty() && packet.size() + kEntryBytes <= kPacketBytesMax) {
    append(queue_.front().file);
    append(queue_.front().range.start);
    append(queue_.front().range.end);
    queue_.pop_front();
  }
  return packet;
}

void OwnerLink::send_loop() {
  thread_id_ = os::thread_id();
  MutexLock lock(mu_);
  std::string packet;  // survives a refusal
  while (!parked_) {
    if (packet.empty() && queue_.empty()) {
      sending_ = false;
      changed_.notify_all();
      changed_.wait(mu_);
      continue;
    }
    if (packet.empty()) packet = take_packet();
    sending_ = true;
    lock.unlock();
    const ssize_t sent =
        os::retry_interrupted([&] { return sys().send(fd_, packet.data(), packet.size()); });
    const int error_number = errno;
    lock.lock();
    if (sent >= 0) {
      packet.clear();
    } else if (error_number == EAGAIN || error_number == ENOBUFS || error_number == ENOMEM) {
      (void)changed_.wait_until(mu_, std::chrono::steady_clock::now() + kRetryPeriod);
    } else {
      packet.clear();
      queue_.clear();
      broken_.store(true, std::memory_order_release);
    }
  }
  // Parked in the middle of it: the next thread sends it first.
  for (size_t at = packet.size(); at > prefix_.size();) {
    uint64_t numbers[3];
    at -= sizeof numbers;
    packet.copy(reinterpret_cast<char*>(numbers), sizeof numbers, at);
    queue_.push_front({numbers[0], {numbers[1], numbers[2]}});
  }
  sending_ = false;
  changed_.notify_all();
}

}  // namespace pgalloc
