// Purpose: tells the owner of shared pages what this process has let go of. Handles end anywhere: in
// a finalizer, in the middle of another request, at interpreter exit. So nothing here waits: ranges
// are queued, and a thread of the core sends them. It never takes the GIL.
//
// Thread safety: any thread, but for park() and resume(), which the fork hooks call.
//
// Invariants
//   1. A packet is sent whole or not at all (the socket is SOCK_SEQPACKET), so others may send on the
//      same socket at any time.
//   2. Once the owner has gone the queue stays empty: the kernel has told it what this process held.
//   3. In a forked child nothing is sent on the parent's behalf.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <thread>

#include "base/mutex.h"
#include "base/process_generation.h"
#include "base/status.h"
#include "base/units.h"

namespace pgalloc {

class OwnerLink : public std::enable_shared_from_this<OwnerLink> {
 public:
  // Sends on a copy of `fd`. A packet is `prefix` and then, for each range, three numbers of 64 bits:
  // file, start, end.
  static Result<std::shared_ptr<OwnerLink>> create(int fd, std::string prefix);
  ~OwnerLink() = default;
  OwnerLink(const OwnerLink&) = delete;
  OwnerLink& operator=(const OwnerLink&) = delete;

  // One lease on each page of `range` is given back, soon.
  void give_back(uint64_t file, FileRange range);
  // Waits until all that was given back is on its way. False if the deadline passed first.
  bool flush(std::chrono::steady_clock::time_point deadline);

  // The owner has gone: nothing is sent any more.
  void break_off();
  bool broken() const { return broken_.load(std::memory_order_acquire); }

  // Stops the thread, and allows it again.
  void park();
  void resume();

 private:
  struct GivenBack {
    uint64_t file;
    FileRange range;
  };

  OwnerLink(int fd, std::string prefix) : fd_(fd), prefix_(std::move(prefix)) {}
  static void destroy(OwnerLink* link);
  bool forked() const { return generation_ != process_generation(); }
  void start_thread() REQUIRES(mu_);
  void send_loop() EXCLUDES(mu_);
  std::string take_packet() REQUIRES(mu_);

  const uint32_t generation_ = process_generation();
  const int fd_;
  const std::string prefix_;
  std::atomic<bool> broken_{false};
  Mutex mu_{LockRank::kOwnerLink};
  CondVar changed_;
  std::deque<GivenBack> queue_ GUARDED_BY(mu_);
  bool sending_ GUARDED_BY(mu_) = false;  // the thread has something in its hands
  bool parked_ GUARDED_BY(mu_) = false;
  std::unique_ptr<std::thread> thread_ GUARDED_BY(mu_);
  std::atomic<pid_t> thread_id_{0};
};

}  // namespace pgalloc
