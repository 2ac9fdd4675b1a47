// Purpose: pages that were sent and not claimed yet.
//
// Thread safety: externally synchronised (the broker's lock).
//
// Invariants
//   1. Each offer owns a lease on its pages, so its sender may let go of them. It ends when it is
//      claimed, which happens once, or dropped.
//   2. An offer has no deadline while its sender lives; afterwards it has one.
//   3. Every offer is in by_secret_ and in by_file_; in by_sender_ until it has a deadline, and in
//      by_deadline_ from there on.
//
// Every operation takes logarithmic time, so that one sender's offers keep no other waiting.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "file/memory_file.h"
#include "sharing/wire.h"

namespace pgalloc {

using SteadyTime = std::chrono::steady_clock::time_point;

struct Offer {
  std::shared_ptr<MemoryFile> file;
  FileRange range;
  uint64_t sender = 0;  // a session; 0 is this process
  pid_t pid = 0;
  uid_t uid = 0;
  SteadyTime since;
  double since_epoch = 0;  // seconds

  static Offer now(const std::shared_ptr<MemoryFile>& file, FileRange range, uint64_t sender,
                   pid_t pid, uid_t uid);
};
double seconds_since_epoch();

class Offers {
 public:
  static constexpr size_t kMax = size_t{1} << 20;
  // How long an offer waits after its sender has ended.
  static constexpr std::chrono::seconds kAfterSenderMax{600};

  bool empty() const { return by_secret_.empty(); }
  size_t size() const { return by_secret_.size(); }

  // Takes over a lease on the pages; the secret by which they are claimed.
  Result<wire::Secret> add(Offer offer);
  std::optional<uint64_t> file_of(const wire::Secret& secret) const;
  // The lease is the caller's from here on.
  Result<Offer> claim(const wire::Secret& secret);
  // The offers of a file that are at least so old, or whose time is over, in all files. Their leases
  // are the caller's.
  std::vector<Offer> take_older(uint64_t file, SteadyTime latest);
  std::vector<Offer> take_expired(SteadyTime now);
  // The sender has ended: its offers wait for a while more.
  void sender_ended(uint64_t sender, SteadyTime now);
  std::optional<SteadyTime> next_deadline() const;
  std::vector<Offer> of_file(uint64_t file) const;
  std::vector<Offer> take_all();

 private:
  struct Key {
    SteadyTime since;
    wire::Secret secret;
    auto operator<=>(const Key&) const = default;
  };
  struct Hash {
    size_t operator()(const wire::Secret& secret) const;
  };
  struct Entry {
    Offer offer;
    std::optional<SteadyTime> deadline;
  };
  using Entries = std::unordered_map<wire::Secret, Entry, Hash>;
  Offer take(Entries::iterator entry);

  Entries by_secret_;
  std::unordered_map<uint64_t, std::set<Key>> by_file_;
  std::unordered_map<uint64_t, std::set<wire::Secret>> by_sender_;
  std::set<Key> by_deadline_;  // Key::since is the deadline
};

// Gives the lease of an offer back.
void drop(const Offer& offer);

}  // namespace pgalloc
