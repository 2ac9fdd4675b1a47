// Purpose: what the owner of pages does for one peer, and what the peer holds meanwhile.
//
// Thread safety: externally synchronised (the broker's lock).
//
// Invariants
//   1. A peer uses only files it was let into, and touches only pages it holds. It gets an error for
//      anything else, and nothing has changed then.
//   2. Everything a peer holds is in its session, and goes with it: end_some().
//   3. No step takes longer than kPieceBytes of pages, or kSegmentsAtOnce segments of the books, need,
//      whatever a peer asks for. Peers can make books of any pages they hold have as many segments as
//      pages: what is done with a range is done piece by piece.
//   4. A std::bad_alloc leaves what a peer holds as it was: memory for an answer is there before
//      anything changes.
#pragma once

#include <sys/types.h>

#include <algorithm>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/status.h"
#include "os/descriptor.h"
#include "sharing/limits.h"
#include "sharing/offers.h"
#include "sharing/peer_process.h"
#include "sharing/request.h"
#include "sharing/share.h"
#include "sharing/shared_cache.h"
#include "sharing/wire.h"

namespace pgalloc {

// What the peers of one listener may use.
struct Scope {
  std::shared_ptr<MemoryFile> file;  // nullptr: what is sent to them
  bool readonly = false;
  std::shared_ptr<SharedCache> cache;  // if one is served
  PeerLimits limits;
};

class Session {
 public:
  static constexpr uint64_t kPieceBytes = uint64_t{8} << 20;  // decommitted at once: about 2 ms
  static constexpr size_t kSegmentsAtOnce = 1024;             // worked on: about 0.5 ms

  Session(uint64_t id, Offers& offers, Scope scope, pid_t pid, uid_t uid);
  ~Session();  // sessions that end by end_some() before need no memory then
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Another connection of the same process: from here on they are counted together. REQUIRES: this one
  // holds nothing.
  void count_with(const Session& other) noexcept;
  // All connections of its process had ended, and something that was sent by them waits: that is counted
  // on. REQUIRES: as above.
  void count_on(uint64_t process) noexcept { usage_->number = process; }
  const std::shared_ptr<PeerUsage>& usage() const { return usage_; }

  // A child of this process is about to be forked: it has these leases, which the file counts already,
  // from birth. How many of these ranges are the session's from here on: if memory has run out, not all.
  size_t adopt(const std::shared_ptr<MemoryFile>& file, const References::Counts& pages);
  void be_born_connected() { forked_ = knows_all_ = true; }
  // A child of the peer gets the leases that the peer has from here to the end of the copying; perhaps
  // some that it has for a part of that time. About so many segments at once; true when that is all.
  struct Copying {
    std::vector<uint64_t> files;  // to come; the last one is next
    uint64_t from = 0;            // in that
  };
  Copying begin_copy(Session& child) const;
  Result<bool> copy_some(Session& child, Copying* copying, size_t segments_max) const;

  // Gives back what comes with a request, before it is worked on; or some of it. True once it is done.
  bool release_first(Request& request);
  // Does what is asked for, or a step of it: nothing until it is done.
  std::optional<Answer> step(Request& request);
  // A request is given up: its peer has gone, or memory has run out.
  void give_up(Request& request);
  // Its good answer cannot be sent. Offers are withdrawn at once; pages are a request from here on, which
  // gives them back: true. Nothing is allocated.
  bool undo_of(Request& request) noexcept;
  // Not if its peer and its owner would then take the same pages for different things.
  static bool may_fail(wire::Op op) { return op != wire::Op::kPin && op != wire::Op::kUnpin; }

  // A forked child, whose connection was made by its parent.
  bool born_connected() const { return forked_; }
  bool holds_nothing() const { return shares_.empty() && !is_attached(); }
  uint64_t bytes_of(uint64_t file) const;
  // What is wrong, if something is.
  std::optional<std::string> verify() const;
  // It is attached to no cache any more. Where peer and owner are one process, that goes with the connection: it has the
  // files mapped in any case, and what is held there keeps its connection (PeerFile::begin_value()).
  void end_attachments() noexcept;
  // Gives back what the peer held, about so many segments. True when nothing is left.
  bool end_some(size_t segments_max);
  // Files that were let go of: to be destroyed without the broker's lock.
  std::vector<std::shared_ptr<MemoryFile>> take_let_go();
  // The files of which it holds pages, or in which it says what it holds.
  std::vector<FileIdentity> files() const;

  const uint64_t id;
  const Scope scope;
  pid_t pid;               // as the kernel says; 0: a child that has not spoken yet; or kUnseen
  os::Descriptor process;  // of one that is unseen: see PeerProcess
  pid_t shown_pid =
      0;  // what those who list leases read; of one that is unseen what it says itself
  const uid_t uid;
  const double since_epoch;  // seconds

 private:
  using Files = std::list<std::shared_ptr<MemoryFile>>;
  struct Held {
    Held(const std::shared_ptr<MemoryFile>& file, PeerUsage& usage)
        : counted(usage, file->id()), share(file), when_forgotten{file} {}
    CountedShare counted;
    Share share;
    Files when_forgotten;  // so that no memory is needed then
  };
  // A file that is worked on. At the end what is held of it is counted; if that is nothing, it is
  // forgotten, and may go.
  class InUse {
   public:
    InUse(Session& session, Held& held) : session_(&session), held_(&held) {}
    InUse(InUse&& other) noexcept
        : session_(std::exchange(other.session_, nullptr)), held_(other.held_) {}
    ~InUse() {
      if (session_ != nullptr) session_->end_use(*held_);
    }
    InUse& operator=(InUse&&) = delete;
    Held* operator->() const { return held_; }
    Held& operator*() const { return *held_; }

   private:
    Session* session_;
    Held* held_;
  };

  // A file that the peer was let into; one that it may write to. One at a time.
  Result<InUse> use(uint64_t file);
  Result<InUse> use_writable(uint64_t file);
  InUse hold(const std::shared_ptr<MemoryFile>& file);
  void end_use(Held& held) noexcept;
  uint64_t bytes_max(const MemoryFile& file) const;
  void describe(MemoryFile& file, Answer* answer) const;
  void add_description(MemoryFile& file, Answer* answer) const;

  std::optional<Answer> open(Request& request);
  std::optional<Answer> claim(Request& request);
  std::optional<Answer> offer(Request& request);
  std::optional<Answer> take_back_offer(Request& request);
  std::optional<Answer> allocate(Request& request);
  std::optional<Answer> release(Request& request);
  bool give_back(Request& request, size_t bytes, Status* status);
  std::optional<Answer> decommit(Request& request);
  std::optional<Answer> unique(Request& request);
  std::optional<Answer> unpin(Request& request);
  std::optional<Answer> pin(Request& request);
  std::optional<Answer> usage_of_file(Request& request);
  std::optional<Answer> ping(Request& request);
  std::optional<Answer> served(Request& request);
  std::optional<Answer> call_cache(Request& request);
  std::shared_ptr<SharedCache> cache_of(uint64_t id) const;
  static Answer describe_cache(const SharedCache& cache);
  Answer attach(const std::shared_ptr<SharedCache>& cache);
  std::optional<Answer> make_room(Request& request);

  Offers& offers_;
  std::shared_ptr<PeerUsage> usage_;  // of its process
  std::unordered_map<uint64_t, std::unique_ptr<Held>>
      shares_;                          // of files of which it holds something
  std::unordered_set<uint64_t> known_;  // files it was let into
  // The caches that it is attached to: its numbers there, and the files in which it says what it holds. One that it has
  // left stays, as 0: it may be destroyed with the session only.
  struct Attached {
    std::shared_ptr<SharedCache> cache;
    uint64_t reader = 0;
    FileIdentity file;
  };
  static constexpr size_t kAttachedMax = 64;
  bool is_attached() const {
    return std::ranges::any_of(attached_, [](const Attached& each) { return each.reader != 0; });
  }
  std::vector<Attached> attached_;
  std::optional<std::string> payer_;  // as it was last looked at
  bool forked_ = false;               // born with leases
  bool knows_all_ = false;            // a child of the owner knows all files that its parent had
  std::vector<std::shared_ptr<MemoryFile>> let_go_;
  Files forgotten_;  // let go of, too
};

}  // namespace pgalloc
