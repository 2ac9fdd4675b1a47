// Purpose: pages that were sent and not claimed yet.
//
// Thread safety: externally synchronised (the broker's lock).
//
// Invariants
//   1. Each offer owns a lease on its pages, so its sender may let go of them. It ends when it is
//      claimed, which happens once, or dropped.
//   2. An offer waits as long as its sender lives, and for a while after that. This process is sender
//      0, and has not ended.
//   3. Every offer is in by_secret_, by_file_ and by_sender_, and counted in of_process_. A sender is there as long as it has
//      offers, and in ended_ if it has ended: those who ended first, first.
//   4. What peers have sent of a file and no receiver has claimed is limited in bytes, for each process and
//      for all together. The same range counts once for a process, however often it is sent: it takes no
//      more memory. This process has no such limit: its offers hold pages that it allocated itself, which
//      its file limits, and one data set that nearly fills a file may be sent to many receivers.
//
// Every operation takes logarithmic time for each offer it takes or lists, so that one sender's offers
// keep no other waiting.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
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
  // The sender, or the first session of its process: limits are for all of these.
  uint64_t process = 0;
  pid_t seen = 0;  // as the kernel says, of a peer that is seen from here

  static Offer now(const std::shared_ptr<MemoryFile>& file, FileRange range, uint64_t sender,
                   pid_t pid, uid_t uid);
};
double seconds_since_epoch();

class Offers {
 public:
  static constexpr size_t kMax = size_t{1} << 20;        // of this process; of all peers
  static constexpr size_t kOfPeerMax = size_t{1} << 18;  // so that one leaves room for others
  // Bytes of one file that wait in offers, unless its sender has a limit of its own.
  static uint64_t of_peer_max(const MemoryFile& file) { return file.allocatable_bytes() / 4; }
  static uint64_t of_all_peers_max(const MemoryFile& file) { return file.allocatable_bytes() / 2; }
  // How long an offer waits after its sender has ended.
  std::chrono::nanoseconds after_sender_max = std::chrono::minutes(10);

  bool empty() const { return by_secret_.empty(); }
  size_t size() const { return by_secret_.size(); }

  // Nothing, or why add() would refuse it.
  Status check_room(const Offer& offer, std::optional<uint64_t> bytes_max) const;
  // Takes over a lease on the pages, unless it fails; the secret by which they are claimed. A peer may
  // have `bytes_max` of the file on offer. kSharing, without effect, beyond a limit.
  Result<wire::Secret> add(const Offer& offer, std::optional<uint64_t> bytes_max = std::nullopt);
  std::optional<uint64_t> file_of(const wire::Secret& secret) const;
  // The lease is the caller's from here on.
  Result<Offer> claim(const wire::Secret& secret);
  // The same with a place, which ends up in drop_later() if it is not wanted after all.
  using Places = std::list<Offer>;
  Result<Places> claim_place(const wire::Secret& secret);
  // Its lease ends, soon.
  void withdraw(const wire::Secret& secret) noexcept;
  // So many of the offers of a file that are at least so old, oldest first; or of those whose time is
  // over, in all files. Their leases are the caller's.
  Places take_older(uint64_t file, SteadyTime latest, size_t count_max) noexcept;
  Places take_expired(SteadyTime now, size_t count_max) noexcept;
  // REQUIRES: !empty().
  Offer take_any() noexcept { return std::move(take(by_secret_.begin()).front()); }

  // Leases of offers that are no more: they end piece by piece, about so many segments at once. What has
  // none left is a file's last owner perhaps, to be destroyed without the lock.
  void drop_later(Places offers) noexcept { dropping_.splice(dropping_.end(), offers); }
  void drop_some(size_t segments_max) noexcept;
  bool dropping() const { return !dropping_.empty(); }
  Places take_dropped() noexcept { return std::exchange(dropped_, {}); }

  // Its offers wait for a while more.
  void sender_ended(uint64_t sender, SteadyTime now) noexcept;
  std::optional<SteadyTime> next_deadline() const;
  // So many of the offers of a file, oldest first: those behind the one that *last names, if it does; it
  // names the last of these then.
  struct Key {
    SteadyTime since;
    wire::Secret secret;
    auto operator<=>(const Key&) const = default;
  };
  std::vector<Offer> of_file(uint64_t file, size_t count_max, std::optional<Key>* last) const;
  // Whether one can still be claimed: its file is open.
  bool any_claimable() const;
  // What counts against the limits: bytes of one process, and of all.
  uint64_t bytes_of_peer(uint64_t file, uint64_t process) const;
  // The number under which what a process has sent is counted, while something of it waits. 0: nothing.
  uint64_t process_of(pid_t pid, uid_t uid) const;
  uint64_t bytes_of_all_peers(uint64_t file) const;

  // What is wrong, if something is.
  std::optional<std::string> verify() const;

 private:
  struct Hash {
    size_t operator()(const wire::Secret& secret) const;
  };
  struct Ended {
    uint64_t sender = 0;
    SteadyTime since;
  };
  struct Sender {
    std::set<wire::Secret> secrets;
    std::list<Ended> place;  // until it has ended: so that no memory is needed then
    std::optional<std::list<Ended>::iterator> ended;
  };
  // What one process has sent of one file.
  struct Waiting {
    std::map<std::pair<uint64_t, uint64_t>, size_t> ranges;  // and how often each was sent
    uint64_t bytes = 0;                                      // of the ranges
  };
  struct File {
    std::set<Key> keys;
    std::map<uint64_t, Waiting> processes;  // but this one
    uint64_t bytes_of_peers = 0;
  };
  using Entries =
      std::unordered_map<wire::Secret, Places, Hash>;  // one each: its place when it goes
  const Waiting* waiting(uint64_t file, uint64_t process) const;
  Places take(Entries::iterator entry) noexcept;
  std::optional<std::string> verify_bytes(const File& file) const;
  void forget(const wire::Secret& secret, const Offer& offer, bool counted) noexcept;

  Entries by_secret_;
  std::unordered_map<uint64_t, File> by_file_;
  std::unordered_map<uint64_t, Sender> by_sender_;
  std::unordered_map<uint64_t, size_t> of_process_;  // how many
  std::map<std::pair<pid_t, uid_t>, uint64_t> process_of_;
  std::list<Ended> ended_;
  Places dropping_;
  Places dropped_;
};

// Gives the lease of an offer back; without memory, the pages stay in use.
void drop(const Offer& offer) noexcept;
// The same of the front of its pages, which are what is left to drop then: *left segments at most, which
// are counted off. True when that is all.
bool drop_front(Offer& offer, size_t* left) noexcept;

}  // namespace pgalloc
