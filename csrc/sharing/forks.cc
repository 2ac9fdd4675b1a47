#include "sharing/forks.h"

#include <pthread.h>
#include <unistd.h>

#include <chrono>
#include <new>
#include <utility>

#include "file/file_registry.h"
#include "file/file_seat.h"
#include "file/memory_file.h"
#include "guard/guard.h"
#include "os/syscalls.h"
#include "sharing/broker.h"
#include "sharing/peer_file.h"
#include "sharing/plant.h"
#include "sharing/shared_cache.h"

namespace pgalloc {

using os::sys;

namespace {

// A connection for the child to another owner.
struct ToOwner {
  std::shared_ptr<OwnerLink> parents;
  Endpoint socket;
  OwnerLink::Owner owner;
  std::vector<wire::Pages> loose;  // leases without a file
  std::shared_ptr<OwnerLink> childs;
};

// Leases for the child on a file of this process.
struct Lent {
  std::shared_ptr<MemoryFile> file;  // kept: it cannot be destroyed while locks are held
  References::Counts pages;
  bool taken = false;
  bool usable = false;  // by a file of the child's
};

// What one fork needs.
struct Fork {
  std::vector<std::shared_ptr<OwnerLink>> held;  // that keep answers back
  std::vector<ToOwner> owners;
  Endpoint to_parent;  // for the child
  OwnerLink::Owner parent;
  Session* session = nullptr;
  std::vector<Lent> lent;
};

struct State {
  Mutex mu{LockRank::kForks};
  Fork fork GUARDED_BY(mu);
  Mutex parks_mu{LockRank::kParks};
  int parks GUARDED_BY(parks_mu) = 0;
  std::vector<std::shared_ptr<OwnerLink>> born GUARDED_BY(mu);
};

// Never destroyed: the process may fork while it ends.
State& state() {
  static State* const instance = new State;
  return *instance;
}

// --- Before --------------------------------------------------------------------------------------

void ask_other_owners(Fork& fork) {
  const auto deadline = std::chrono::steady_clock::now() + Forks::ask_max;
  const auto links = OwnerLink::all();
  struct Asked {
    std::shared_ptr<OwnerLink> link;
    OwnerLink::ChildSocket socket;
  };
  std::vector<Asked> asked;
  asked.reserve(links.size());
  fork.held.reserve(links.size());
  fork.owners.reserve(links.size());
  if (links.empty()) return;
  const Broker::Attending attending;
  for (const auto& link : links) {
    if (!link->hold_answers(deadline)) continue;
    fork.held.push_back(link);
    if (auto socket = link->ask_for_child()) asked.push_back({link, std::move(*socket)});
  }
  for (const Asked& each : asked) {
    Endpoint socket = each.link->await_child(each.socket, deadline);
    if (socket.open()) fork.owners.push_back({each.link, std::move(socket), {}, {}, nullptr});
  }
}

// A session for the child in this process's broker, if there is a file.
void connect_to_broker(Fork& fork) {
  int pair[2];
  if (FileRegistry::count() == 0 || sys().socketpair(pair) != 0) return;
  Endpoint ours(pair[0]);
  Endpoint theirs(pair[1]);
  if (!ours.open() || !theirs.open() || !ours.name_senders()) return;
  const auto address = Broker::instance().address_for_child();
  if (!address.ok()) return;
  const Result<Session*> session = Broker::instance().begin_child(std::move(ours));
  if (!session.ok()) return;
  fork.parent = {::getpid(), address->name, address->path, address->secret, ::geteuid()};
  fork.to_parent = std::move(theirs);
  fork.session = *session;
}

void lend(Fork& fork, MemoryFile& file) NO_THREAD_SAFETY_ANALYSIS try {
  if (file.closed()) return;
  Lent& lent = fork.lent.emplace_back();
  lent.file = file.weak_from_this().lock();
  if (lent.file == nullptr) return;  // no handle is left, and no view
  file.references().lease_pinned(&lent.pages);
  const size_t adopted = fork.session->adopt(lent.file, lent.pages);
  file.references().undo_leases(lent.pages, adopted);
  lent.taken = adopted == lent.pages.size();
  lent.usable = !file.incomplete();
} catch (const std::bad_alloc&) {  // NOLINT: without leases the child cannot touch the mapping
}

template <class Visit>
void visit_files(Visit visit) {
  FileRegistry::visit_locked([&](RegisteredFile& file) {
    visit(static_cast<MemoryFile&>(file));
  });  // there is no other kind
}

// The file of a seat as a peer has it; nullptr where this process is none.
PeerFile* peer_in(const FileSeat& seat) {
  return seat.latest().is_remote() ? static_cast<PeerFile*>(&seat.latest()) : nullptr;
}

template <class Visit>
void visit_peer_files(Visit visit) {
  FileSeat::visit_listed([&](FileSeat& seat) {
    PeerFile* const peer = seat.orphaned() ? nullptr : peer_in(seat);
    if (peer != nullptr) visit(*peer);
  });
}

void before_fork() noexcept NO_THREAD_SAFETY_ANALYSIS {
  state().mu.lock();
  Fork& fork = state().fork;
  try {
    ask_other_owners(fork);
  } catch (const std::bad_alloc&) {  // NOLINT: the child gets fewer leases
  }
  Broker::instance().lock_for_fork();
  try {
    connect_to_broker(fork);
  } catch (const std::bad_alloc&) {  // NOLINT: the same
  }
  FileRegistry::hold_threads_for_fork();
  Guard::before_fork();
  FileRegistry::lock_for_fork();
  try {
    size_t files = 0;
    visit_files([&](MemoryFile&) { ++files; });
    fork.lent.reserve(files);
    for (ToOwner& owner : fork.owners) {
      owner.owner = owner.parents->owner();
      owner.loose = owner.parents->loose_leases();
    }
  } catch (const std::bad_alloc&) {
    fork.session = nullptr;
  }
  FileSeat::listed_lock().lock();
  OwnerLink::listed_lock().lock();
  SharedCache::lock_for_fork();
  visit_files([](MemoryFile& file) { file.stop_keepers_for_fork(); });
  visit_files([](MemoryFile& file) { file.lock_for_fork(); });
  visit_peer_files([](PeerFile& file) { file.lock_for_fork(); });
  if (fork.session != nullptr) visit_files([&](MemoryFile& file) { lend(fork, file); });
}

// --- In the parent -------------------------------------------------------------------------------

void after_fork_in_parent() noexcept NO_THREAD_SAFETY_ANALYSIS {
  visit_peer_files([](PeerFile& file) { file.unlock_after_fork(); });
  visit_files([](MemoryFile& file) { file.unlock_after_fork(); });
  visit_files([](MemoryFile& file) { file.let_keepers_go_on(); });
  SharedCache::unlock_in_parent();
  OwnerLink::listed_lock().unlock();
  FileSeat::listed_lock().unlock();
  FileRegistry::unlock_in_parent();
  Guard::after_fork_in_parent();
  Fork done = std::exchange(state().fork, {});
  if (done.session != nullptr && strikes(Plant::kFork)) done.session->end_some(SIZE_MAX);
  Broker::instance().unlock_in_parent();
  for (const auto& link : done.held) {
    try {
      link->let_answers_in();
    } catch (const std::bad_alloc&) {  // NOLINT: an answer is lost, and its asker is told in time
    }
  }
  state().mu.unlock();
}

// --- In the child --------------------------------------------------------------------------------

// A link of the child's; nullptr if it could not say who it is: then its leases end with the socket.
std::shared_ptr<OwnerLink> born_link(Endpoint socket, OwnerLink::Owner owner) try {
  auto link = OwnerLink::create(std::move(socket));
  if (!link.ok() || !(*link)->introduce()) return nullptr;
  (*link)->set_owner(std::move(owner));
  return std::move(*link);
} catch (const std::bad_alloc&) {
  return nullptr;
}

void remember(const std::shared_ptr<OwnerLink>& link) NO_THREAD_SAFETY_ANALYSIS {
  try {
    state().born.push_back(link);
  } catch (const std::bad_alloc&) {  // NOLINT: Python makes another connection when it needs one
  }
}

// The child's link that has what the parent's had.
std::shared_ptr<OwnerLink> successor(const Fork& fork, const void* parents) {
  for (const ToOwner& owner : fork.owners) {
    if (owner.parents.get() == parents) return owner.childs;
  }
  return nullptr;
}

void revoke(const FileSeat& seat) {
  if (const auto chunks = seat.latest().chunks()) chunks->revoke_in_child();
}

// Leases on what is viewed, and no file.
void guard(FileSeat& seat, const std::shared_ptr<OwnerLink>& link) {
  link->begin_file();
  seat.set_guard(link);
}

// The child's own file, for handles. False if something is short.
template <class Inherit>
bool become(FileSeat& seat, Inherit inherit) try {
  auto file = inherit();
  if (!file.ok()) return false;
  seat.become(std::move(*file));
  seat.set_guard(nullptr);
  return true;
} catch (const std::bad_alloc&) {
  return false;
}

// A file of the parent's own.
void take_seat(FileSeat& seat, MemoryFile& file, const Fork& fork,
               const std::shared_ptr<OwnerLink>& to_parent) {
  if (file.closed()) return;
  const Lent* found = nullptr;
  for (const Lent& lent : fork.lent) {
    if (lent.file.get() == &file) found = &lent;
  }
  if (found == nullptr || !found->taken || to_parent == nullptr) return revoke(seat);
  const bool is_peer =
      found->usable && become(seat, [&] {
        file.chunks()->reset_after_fork();
        return PeerFile::inherit(file.chunks(), file.fd(), {file.id(), file.capacity(), false},
                                 to_parent, found->pages);
      });
  if (!is_peer) guard(seat, to_parent);
}

// Whether the owner has ended, and so gives its pages to no other process any more.
bool gives_no_more(OwnerLink& parents) {
  return parents.broken() ? parents.owner_ends(OwnerLink::kOwnersEndAtFork_ms)
                          : parents.owner_has_ended();
}

// A file that the parent was a peer of.
void take_seat(FileSeat& seat, PeerFile& file, const Fork& fork) {
  const auto link = successor(fork, &file.link());
  if (link != nullptr) {
    if (!become(seat, [&] { return PeerFile::inherit(file, link); })) guard(seat, link);
  } else if (!gives_no_more(file.link())) {
    revoke(seat);
  }
}

// Where the parent had no file of its own, but leases.
void take_guard(FileSeat& seat, const Fork& fork) {
  const auto parents = std::static_pointer_cast<OwnerLink>(seat.guard());  // as guard() has set it
  const auto link = successor(fork, parents.get());
  if (link != nullptr) return guard(seat, link);
  seat.set_guard(nullptr);
  if (!gives_no_more(*parents)) revoke(seat);
}

void take_seats(const Fork& fork, const std::shared_ptr<OwnerLink>& to_parent) {
  FileSeat::visit_listed([&](FileSeat& seat) {
    if (seat.guard() != nullptr) {
      take_guard(seat, fork);
    } else if (seat.used_by_parent()) {
      if (PeerFile* const peer = peer_in(seat)) return take_seat(seat, *peer, fork);
      take_seat(seat, static_cast<MemoryFile&>(seat.latest()), fork, to_parent);
    }
  });
}

void after_fork_in_child() noexcept NO_THREAD_SAFETY_ANALYSIS {
  State& its = state();
  begin_process_generation();
  OwnerLink::visit_listed([](OwnerLink& link) { link.leave_to_parent(); });
  OwnerLink::reset_in_child();
  SharedCache::reset_in_child();
  OwnerLink::listed_lock().unlock();
  FileSeat::listed_lock().unlock();
  FileRegistry::reset_in_child();
  Guard::after_fork_in_child();
  Broker::instance().reset_in_child();
  new (&its.parks_mu) Mutex(LockRank::kParks);  // another thread of the parent may have it
  its.parks = 0;

  Fork& fork = its.fork;
  its.born.clear();  // the parent's
  std::shared_ptr<OwnerLink> to_parent;
  if (fork.session != nullptr) to_parent = born_link(std::move(fork.to_parent), fork.parent);
  if (to_parent != nullptr) remember(to_parent);
  for (ToOwner& owner : fork.owners) {
    owner.childs = born_link(std::move(owner.socket), owner.owner);
    if (owner.childs != nullptr) remember(owner.childs);
  }
  take_seats(fork, to_parent);
  for (const ToOwner& owner : fork.owners) {
    if (owner.childs == nullptr) continue;
    for (const wire::Pages& pages : owner.loose) owner.childs->give_back(pages.file, pages.range);
  }
  const Fork done = std::exchange(fork, {});
  its.mu.unlock();
}

}  // namespace

// --- All the time --------------------------------------------------------------------------------

void Forks::install() {
  static const bool once = [] {
    (void)state();
    (void)Broker::instance();
    (void)FileRegistry::all();
    ::pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
    return true;
  }();
  (void)once;
}

void Forks::park_threads() {
  MutexLock lock(state().parks_mu);
  if (++state().parks > 1) return;
  Broker::instance().park();
  FileRegistry::park_threads();
  OwnerLink::park_all();
}

void Forks::resume_threads() {
  MutexLock lock(state().parks_mu);
  if (state().parks == 0) return;
  --state().parks;
  if (state().parks > 0) return;
  OwnerLink::resume_all();
  FileRegistry::resume_threads();
  Broker::instance().resume();
}

std::vector<std::shared_ptr<OwnerLink>> Forks::take_born_links() {
  MutexLock lock(state().mu);
  return std::exchange(state().born, {});
}

}  // namespace pgalloc
