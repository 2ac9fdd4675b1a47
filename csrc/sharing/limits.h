// Purpose: what one process may take of an owner's, and what it has taken, by all of its connections.
//
// Thread safety: externally synchronised (the broker's lock), but for PeerUsage::connections: a session that
// holds nothing is destroyed without the lock.
//
// Invariant: what is compared with a limit was counted when it was taken: it takes no longer if a
// process has many connections.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <utility>

namespace pgalloc {

// What one process may take at most. Bytes are those of one file.
struct PeerLimits {
  // Of pages it holds: checked when it allocates. Nothing: half of what can be allocated in a file that
  // is served; of others no limit: those peers are the program's own processes, and begin with leases on
  // all that was sent to them or that their parent had.
  std::optional<uint64_t> bytes;
  std::optional<uint64_t> unclaimed;  // of pages it has sent. Nothing: Offers::of_peer_max()
  uint32_t requests = 64;       // at once, on each connection: one must not keep others waiting
  uint32_t children = 1024;     // forked, and alive
  uint64_t unpinned = 1 << 20;  // ranges
  friend bool operator==(const PeerLimits&, const PeerLimits&) = default;
};

// What one process has taken. What it has sent is in Offers, under the same number.
struct PeerUsage {
  struct OfFile {
    uint64_t bytes = 0;
    size_t shares = 0;  // of its connections in the file; 0: not counted any more
  };

  explicit PeerUsage(uint64_t its_number) : number(its_number) {}
  uint64_t bytes_of(uint64_t file) const {
    const auto found = files.find(file);
    return found == files.end() ? 0 : found->second.bytes;
  }

  uint64_t number;
  std::atomic<size_t> connections =
      0;  // also those that have ended, while something is held by them
  uint32_t children = 0;
  uint64_t unpinned = 0;
  std::map<uint64_t, OfFile> files;
};

// What one connection holds of one file, in the usage of its process.
class CountedShare {
 public:
  CountedShare(PeerUsage& usage, uint64_t file)
      : usage_(usage), of_file_(usage.files.try_emplace(file).first) {
    ++of_file_->second.shares;
  }
  ~CountedShare() {
    set(0, 0);
    if (--of_file_->second.shares == 0) usage_.files.erase(of_file_);
  }
  CountedShare(const CountedShare&) = delete;
  CountedShare& operator=(const CountedShare&) = delete;

  void set(uint64_t bytes, uint64_t unpinned) noexcept {
    of_file_->second.bytes += bytes - std::exchange(bytes_, bytes);
    usage_.unpinned += unpinned - std::exchange(unpinned_, unpinned);
  }
  bool is(uint64_t bytes, uint64_t unpinned) const {
    return bytes_ == bytes && unpinned_ == unpinned;
  }

 private:
  PeerUsage& usage_;
  const std::map<uint64_t, PeerUsage::OfFile>::iterator of_file_;
  uint64_t bytes_ = 0;
  uint64_t unpinned_ = 0;
};

// A forked child, in the usage of its parent.
class CountedChild {
 public:
  explicit CountedChild(std::shared_ptr<PeerUsage> parent) : parent_(std::move(parent)) {
    ++parent_->children;
  }
  ~CountedChild() { --parent_->children; }
  CountedChild(const CountedChild&) = delete;
  CountedChild& operator=(const CountedChild&) = delete;

 private:
  const std::shared_ptr<PeerUsage> parent_;
};

}  // namespace pgalloc
