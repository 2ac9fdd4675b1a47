#include "sharing/broker.h"

#include <pthread.h>

#include <array>
#include <system_error>
#include <utility>

#include "file/file_registry.h"
#include "os/syscalls.h"
#include "os/thread.h"
#include "sharing/peers.h"

namespace pgalloc {

using os::sys;

// Holds the lock; afterwards, without it, destroys the files that were let go of meanwhile.
class SCOPED_CAPABILITY Broker::Locked {
 public:
  explicit Locked(Broker& broker) ACQUIRE(broker.mu_) : broker_(broker), lock_(broker.mu_) {}
  ~Locked() RELEASE() { unlock(); }
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;

  void unlock() RELEASE() NO_THREAD_SAFETY_ANALYSIS {
    if (!held_) return;
    const auto let_go = broker_.peers_->take_let_go();
    held_ = false;
    lock_.unlock();
  }
  void lock() ACQUIRE() {
    lock_.lock();
    held_ = true;
  }

 private:
  Broker& broker_;
  MutexLock lock_;
  bool held_ = true;
};

Broker& Broker::instance() {
  static Broker* const broker = [] {
    auto* const created = new Broker;  // never destroyed: its thread may outlive static destruction
    // Before a fork the last one that was registered is called first: the broker's lock comes first.
    (void)FileRegistry::account();
    ::pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
    return created;
  }();
  return *broker;
}

Broker::Broker() : peers_(std::make_unique<Peers>()) {}

// --- Forks ---------------------------------------------------------------------------------------

void Broker::before_fork() NO_THREAD_SAFETY_ANALYSIS { instance().mu_.lock(); }
void Broker::after_fork_in_parent() NO_THREAD_SAFETY_ANALYSIS { instance().mu_.unlock(); }
void Broker::after_fork_in_child() NO_THREAD_SAFETY_ANALYSIS {
  Broker& broker = instance();
  (void)broker.thread_.release();  // it is not here
  broker.parked_ = 0;
  broker.peers_ = std::make_unique<Peers>();
  broker.mu_.unlock();
}

void Broker::park() {
  std::unique_ptr<std::thread> thread;
  {
    Locked lock(*this);
    if (++parked_ > 1) return;
    peers_->wake();
    thread = std::move(thread_);
  }
  if (thread == nullptr) return;
  thread->join();
  os::wait_until_gone(thread_id_);
}

void Broker::resume() {
  Locked lock(*this);
  if (parked_ == 0 || --parked_ > 0) return;
  if (peers_->started()) (void)start_thread();  // else with the next call that needs it
}

// --- The thread ----------------------------------------------------------------------------------

Status Broker::start() {
  PGALLOC_RETURN_IF_ERROR(peers_->start());
  return start_thread();
}

Status Broker::start_thread() {
  if (thread_ != nullptr || parked_ > 0) return {};
  try {
    thread_ = std::make_unique<std::thread>([this] { run(); });
  } catch (const std::system_error& error) {
    thread_ = nullptr;
    return Status::system_error(error.code().value(), "pthread_create");
  }
  return {};
}

void Broker::run() {
  thread_id_ = os::thread_id();
  std::array<epoll_event, 64> events;
  Locked lock(*this);
  while (parked_ == 0) {
    const Peers::Wait wait = peers_->prepare(std::chrono::steady_clock::now());
    lock.unlock();
    const auto room = static_cast<int>(events.size());
    const int count =
        wait.epoll < 0 ? -1 : sys().epoll_wait(wait.epoll, events.data(), room, wait.timeout_ms);
    if (count < 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // not at once again
    lock.lock();
    const auto now = std::chrono::steady_clock::now();
    for (int i = 0; i < count && parked_ == 0; ++i) peers_->handle(events[i], now);
    peers_->work(now);
  }
}

// --- The owner's own -----------------------------------------------------------------------------

Result<Broker::Address> Broker::address() {
  Locked lock(*this);
  PGALLOC_RETURN_IF_ERROR(start());
  return Address{peers_->name(), peers_->secret()};
}

Result<wire::Secret> Broker::offer(const std::shared_ptr<MemoryFile>& file, FileRange range) {
  Locked lock(*this);
  PGALLOC_RETURN_IF_ERROR(start());
  PGALLOC_RETURN_IF_ERROR(file->references().lease_anew(range));
  const Offer offer = Offer::now(file, range, 0, ::getpid(), ::getuid());
  Result<wire::Secret> secret = Status::error(ErrorCode::kNoMemory, "");
  try {
    secret = peers_->offers().add(offer);
  } catch (...) {
    drop(offer);
    throw;
  }
  if (!secret.ok()) drop(offer);
  return secret;
}

bool Broker::is_own(const wire::Secret& secret) {
  Locked lock(*this);
  return peers_->started() && secret == peers_->secret();
}

std::optional<uint64_t> Broker::offered_file(const wire::Secret& secret) {
  Locked lock(*this);
  return peers_->offers().file_of(secret);
}

Result<Offer> Broker::claim(const wire::Secret& secret) {
  Locked lock(*this);
  Result<Offer> claimed = peers_->offers().claim(secret);
  if (claimed.ok()) (void)claimed->file->references().end_lease(claimed->range);  // or it is closed
  return claimed;
}

uint64_t Broker::drop_unclaimed(uint64_t file, std::chrono::nanoseconds age) {
  Locked lock(*this);
  uint64_t bytes = 0;
  for (Offer& offer : peers_->offers().take_older(file, std::chrono::steady_clock::now() - age)) {
    bytes += offer.range.length();
    drop(offer);
    peers_->let_go(std::move(offer.file));
  }
  return bytes;
}

std::vector<Broker::Lease> Broker::leases(uint64_t file) {
  Locked lock(*this);
  std::vector<Lease> leases;
  peers_->visit_sessions([&](const Session& session) {
    const uint64_t bytes = session.bytes_of(file);
    if (bytes > 0) leases.push_back({session.pid, session.uid, bytes, session.since_epoch, true});
  });
  for (const Offer& offer : peers_->offers().of_file(file)) {
    leases.push_back({offer.pid, offer.uid, offer.range.length(), offer.since_epoch, false});
  }
  return leases;
}

// --- Peers ---------------------------------------------------------------------------------------

Result<uint64_t> Broker::serve(int fd, Scope scope) {
  Endpoint socket(fd);
  Locked lock(*this);
  PGALLOC_RETURN_IF_ERROR(start());
  return peers_->add_listener(std::move(socket), std::move(scope));
}

void Broker::stop_serving(uint64_t number) {
  Locked lock(*this);
  peers_->remove_listener(number);
}

Status Broker::add_child(int fd, std::vector<ForkLease>& leases) {
  Endpoint socket(fd);
  Locked lock(*this);
  auto session = std::make_unique<Session>(peers_->next_number(), peers_->offers(), Scope{}, 0,
                                           ::getuid());
  session->adopt(leases);
  PGALLOC_RETURN_IF_ERROR(peers_->add_child(std::move(socket), std::move(session)));
  return start();
}

std::function<void()> Broker::waker() {
  return [] {
    Broker& broker = instance();
    Locked lock(broker);
    broker.peers_->wake();
  };
}

Broker::Figures Broker::figures() {
  Locked lock(*this);
  Figures figures{.channels = peers_->channel_count(),
                  .listeners = peers_->listener_count(),
                  .offers = peers_->offers().size(),
                  .sessions_without_channel = peers_->detached_count()};
  return figures;
}

void Broker::set_greeting_max(std::chrono::nanoseconds longest) {
  Locked lock(*this);
  peers_->greeting_max = longest;
  peers_->wake();
}

}  // namespace pgalloc
