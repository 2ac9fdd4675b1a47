#include "sharing/broker.h"

#include <errno.h>

#include <array>
#include <new>
#include <system_error>
#include <tuple>
#include <utility>

#include "os/syscalls.h"
#include "os/thread.h"
#include "sharing/peers.h"

namespace pgalloc {

using os::sys;

namespace {

constexpr size_t kOffersAtOnce = 1024;  // looked at with the lock: about 0.3 ms

constexpr size_t kSegmentsAtOnce = 4096;  // of a file's books, with its lock

void drop_all(Offer& offer) noexcept {
  for (size_t left = kSegmentsAtOnce; !drop_front(offer, &left);) left = kSegmentsAtOnce;
}

// Who takes the lock again at once has it before a thread that waits for it wakes up.
void let_thread_work() { std::this_thread::sleep_for(std::chrono::microseconds(100)); }

}  // namespace

// Holds the lock; afterwards, without it, destroys the files that were let go of meanwhile.
class SCOPED_CAPABILITY Broker::Locked {
 public:
  explicit Locked(Broker& broker) ACQUIRE(broker.mu_)
      : broker_(broker), wants_(broker.callers_), lock_(broker.mu_) {
    wants_.over();
    if (lacks_thread_) broker_.retry_thread();
  }
  ~Locked() RELEASE() NO_THREAD_SAFETY_ANALYSIS {
    const Peers::LetGo let_go = broker_.peers_->take_let_go();
    lock_.unlock();
  }
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;

 private:
  struct Wants {
    explicit Wants(std::atomic<int>& its_count) : count(its_count) { ++count; }
    void over() { --count; }
    std::atomic<int>& count;
  };

  Broker& broker_;
  Wants wants_;
  MutexLock lock_;
};

// The same in the middle of something: until the end of the scope the lock is not held.
class SCOPED_CAPABILITY Broker::Unlocked {
 public:
  explicit Unlocked(Broker& broker) RELEASE(broker.mu_) NO_THREAD_SAFETY_ANALYSIS
      : mu_(broker.mu_) {
    const Peers::LetGo let_go = broker.peers_->take_let_go();
    mu_.unlock();
  }
  ~Unlocked() RELEASE() NO_THREAD_SAFETY_ANALYSIS { mu_.lock(); }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  Mutex& mu_;
};

Broker& Broker::instance() {
  static Broker* const broker =
      new Broker;  // never destroyed: its thread may outlive static destruction
  return *broker;
}

Broker::Broker() : peers_(std::make_unique<Peers>()) {}

// --- Forks ---------------------------------------------------------------------------------------

void Broker::lock_for_fork() NO_THREAD_SAFETY_ANALYSIS {
  ++callers_;
  mu_.lock();
  --callers_;
}

void Broker::unlock_in_parent() NO_THREAD_SAFETY_ANALYSIS {
  const Peers::LetGo let_go = peers_->take_let_go();
  mu_.unlock();
}

void Broker::reset_in_child() NO_THREAD_SAFETY_ANALYSIS {
  std::ignore = thread_.release();  // they are not here
  std::ignore = looker_.release();
  look_.reset();
  stop_looking_ = false;
  parked_ = 0;
  attending_ = false;
  ending_ = false;
  lacks_thread_ = false;
  callers_ = 0;
  if (std::exchange(awaiting_, 0) > 0)
    new (&delivered_) CondVar;  // the old one has a waiter for ever
  peers_ = std::make_unique<Peers>();
  mu_.unlock();
}

Result<Session*> Broker::begin_child(Endpoint socket) NO_THREAD_SAFETY_ANALYSIS {
  PGALLOC_RETURN_IF_ERROR(start());
  auto session =
      std::make_unique<Session>(peers_->next_number(), peers_->offers(), Scope{}, 0, ::getuid());
  Session* const begun = session.get();
  begun->be_born_connected();
  PGALLOC_RETURN_IF_ERROR(peers_->add_child(std::move(socket), std::move(session)));
  return begun;
}

Result<Broker::Address> Broker::address_for_child() NO_THREAD_SAFETY_ANALYSIS {
  PGALLOC_RETURN_IF_ERROR(start());
  return Address{peers_->name(), peers_->path(), peers_->secret()};
}

void Broker::park() {
  {
    Locked lock(*this);
    ++parked_;
  }
  stop_thread();
}

// And waits until the kernel has forgotten it; unless it is to run meanwhile.
void Broker::stop_thread() {
  std::unique_ptr<std::thread> thread;
  {
    Locked lock(*this);
    while (ending_) {  // another thread stops it, too
      const Unlocked unlocked(*this);
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    if (runs()) return;
    thread = std::move(thread_);
    if (thread == nullptr) return;
    ending_ = true;
    peers_->wake();
  }
  thread->join();
  os::wait_until_gone(thread_id_);
  stop_looking_ = true;
  join_looker();
  stop_looking_ = false;
  Locked lock(*this);
  ending_ = false;
  if (!runs() || !peers_->started()) return;
  lacks_thread_ = true;  // another thread has resumed it meanwhile
  retry_thread();
}

Broker::Attending::Attending() try {
  Broker& broker = instance();
  Locked lock(broker);
  broker.attending_ = true;
  if (broker.peers_->started()) (void)broker.start_thread();
} catch (const std::bad_alloc&) {  // NOLINT: then it answers after the fork
}

Broker::Attending::~Attending() {
  Broker& broker = instance();
  {
    Locked lock(broker);
    broker.attending_ = false;
  }
  broker.stop_thread();
}

// Without a thread, the next call tries again.
void Broker::resume() try {
  Locked lock(*this);
  if (parked_ == 0) return;
  --parked_;
  if (parked_ > 0) return;
  lacks_thread_ = peers_->started();
  if (lacks_thread_) retry_thread();
} catch (const std::bad_alloc&) {  // NOLINT: the same
}

void Broker::retry_thread() try {
  if (start_thread().ok()) lacks_thread_ = false;
} catch (const std::bad_alloc&) {  // NOLINT: as any other failure
}

// --- The thread ----------------------------------------------------------------------------------

Status Broker::start() {
  PGALLOC_RETURN_IF_ERROR(peers_->start());
  return start_thread();
}

Status Broker::start_thread() {
  if (thread_ != nullptr || !runs() || ending_) return {};
  try {
    const os::WithoutSignals quiet;
    thread_ = std::make_unique<std::thread>([this] { run(); });
  } catch (const std::system_error& error) {
    thread_ = nullptr;
    return Status::system_error(error.code().value(), "pthread_create");
  }
  return {};
}

void Broker::run() {
  thread_id_ = os::thread_id();
  Locked lock(*this);
  while (runs()) {
    try {
      round();
    } catch (const std::bad_alloc&) {
      const Unlocked unlocked(*this);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
}

void Broker::round() {
  std::array<epoll_event, 64> events;
  const auto now = std::chrono::steady_clock::now();
  begin_look(now);
  const Peers::Wait wait = peers_->prepare(now);
  const int count = wait_for_events(wait, events);
  const auto then = std::chrono::steady_clock::now();
  for (int i = 0; i < count && runs(); ++i) peers_->handle(events[i], then);
  peers_->work(then);
  tell_waiting();
}

void Broker::tell_waiting() {
  if (awaiting_ > 0) delivered_.notify_all();
}

// Without the lock.
int Broker::wait_for_events(const Peers::Wait& wait, std::span<epoll_event> events) {
  const Unlocked unlocked(*this);
  // Else this thread would have the lock again before they wake up.
  for (int i = 0; i < 50 && callers_ > 0; ++i) std::this_thread::yield();
  const auto room = static_cast<int>(events.size());
  const int count =
      wait.epoll < 0 ? -1 : sys().epoll_wait(wait.epoll, events.data(), room, wait.timeout_ms);
  if (count < 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // not at once again
  return count;
}

// --- Looking -------------------------------------------------------------------------------------

// At the next process without a connection, if it is time.
void Broker::begin_look(SteadyTime now) {
  if (look_) return;
  if (looker_ != nullptr) {
    const Unlocked unlocked(*this);
    join_looker();
  }
  look_ = peers_->departed().next_look(now);
  if (!look_) return;
  if (look_->process->has_mappings()) start_looker();
  if (looker_ != nullptr) return;
  look_->take();  // nothing is read of a process that has ended; or there is no thread to be had
  end_look({});
}

void Broker::start_looker() try {
  const os::WithoutSignals quiet;
  looker_ = std::make_unique<std::thread>([this] { run_look(); });
} catch (const std::exception&) {  // NOLINT: std::system_error or std::bad_alloc
  looker_ = nullptr;
}

void Broker::end_look(std::chrono::nanoseconds took) {
  peers_->departed().looked(*look_, std::chrono::steady_clock::now(), took);
  look_.reset();
}

void Broker::run_look() NO_THREAD_SAFETY_ANALYSIS {
  looker_id_ = os::thread_id();
  {
    const MutexLock lock(mu_);  // its place is filled by then
  }
  const auto begun = std::chrono::steady_clock::now();
  look_->take(&stop_looking_);  // it is this thread's until it is over
  const auto took = std::chrono::steady_clock::now() - begun;
  Locked lock(*this);
  end_look(took);
  peers_->wake();
}

// Waits for the end of a look, and of its thread.
void Broker::join_looker() {
  std::unique_ptr<std::thread> looker;
  {
    const MutexLock lock(mu_);
    looker = std::move(looker_);
  }
  if (looker == nullptr) return;
  looker->join();
  os::wait_until_gone(looker_id_);
}

// --- The owner's own -----------------------------------------------------------------------------

Result<Broker::Address> Broker::address() {
  Locked lock(*this);
  return address_for_child();
}

Result<wire::Secret> Broker::offer(const std::shared_ptr<MemoryFile>& file, FileRange range) {
  // The leases without the lock: they may take long.
  Offer offer = Offer::now(file, {range.start, range.start}, 0, ::getpid(), ::getuid());
  Status status;
  try {
    while (status.ok() && (offer.range.end < range.end || range.empty())) {
      size_t left = kSegmentsAtOnce;
      const FileRange piece = file->references().front({offer.range.end, range.end}, &left);
      status = file->references().lease_anew(piece);
      if (status.ok()) offer.range.end = piece.end;
    }
    Locked lock(*this);
    if (status.ok()) status = start();
    if (status.ok()) {
      Result<wire::Secret> secret = peers_->offers().add(offer);
      if (secret.ok()) return secret;
      status = std::move(secret).status();
    }
  } catch (const std::bad_alloc&) {
    drop_all(offer);
    throw;
  }
  drop_all(offer);
  return status;
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
  const auto take = [&] {
    Locked lock(*this);
    Result<Offer> claimed = peers_->offers().claim(secret);
    tell_waiting();
    return claimed;
  };
  Result<Offer> claimed = take();
  if (!claimed.ok()) return claimed;
  References& references = claimed->file->references();
  for (FileRange rest = claimed->range; !rest.empty();) {
    size_t left = kSegmentsAtOnce;
    const FileRange piece = references.front(rest, &left);
    (void)references.end_lease(piece);  // or it is closed
    rest.start = piece.end;
  }
  return claimed;
}

uint64_t Broker::drop_unclaimed(uint64_t file, std::chrono::nanoseconds age) {
  const auto latest = std::chrono::steady_clock::now() - age;
  uint64_t bytes = 0;
  for (;;) {
    Offers::Places offers;  // destroyed without the lock
    {
      Locked lock(*this);
      offers = peers_->offers().take_older(file, latest, kOffersAtOnce);
      tell_waiting();
    }
    for (Offer& offer : offers) {
      bytes += offer.range.length();
      drop_all(offer);
    }
    if (offers.size() < kOffersAtOnce) return bytes;
    let_thread_work();
  }
}

std::vector<Broker::Lease> Broker::leases(uint64_t file) {
  std::vector<Lease> leases;
  {
    Locked lock(*this);
    peers_->visit_sessions([&](const Session& session) {
      const uint64_t bytes = session.bytes_of(file);
      if (bytes > 0)
        leases.push_back({session.shown_pid, session.uid, bytes, session.since_epoch, true});
    });
  }
  // What is sent meanwhile is not listed: else this might never end.
  const SteadyTime begun = std::chrono::steady_clock::now();
  std::optional<Offers::Key> last;
  for (;;) {
    std::vector<Offer> some;  // destroyed without the lock
    {
      Locked lock(*this);
      some = peers_->offers().of_file(file, kOffersAtOnce, &last);
    }
    for (const Offer& offer : some) {
      if (offer.since <= begun)
        leases.push_back({offer.pid, offer.uid, offer.range.length(), offer.since_epoch, false});
    }
    if (some.size() < kOffersAtOnce || some.back().since > begun) return leases;
    let_thread_work();
  }
}

bool Broker::await_claims(SteadyTime deadline) {
  Locked lock(*this);
  ++awaiting_;
  while (peers_->delivering() && delivered_.wait_until(mu_, deadline)) {
  }
  --awaiting_;
  return !peers_->delivering();
}

// --- Peers ---------------------------------------------------------------------------------------

Result<uint64_t> Broker::serve(int fd, Scope scope) {
  Endpoint socket(fd);
  if (!socket.open()) return Status::system_error(errno, "fstat");
  Locked lock(*this);
  PGALLOC_RETURN_IF_ERROR(start());
  return peers_->add_listener(std::move(socket), std::move(scope));
}

void Broker::stop_serving(uint64_t number) {
  Locked lock(*this);
  peers_->remove_listener(number);
}

Broker::Figures Broker::figures() {
  Locked lock(*this);
  Figures figures{.channels = peers_->channel_count(),
                  .listeners = peers_->listener_count(),
                  .offers = peers_->offers().size(),
                  .sessions_without_channel = peers_->departed().size(),
                  .looking = look_.has_value()};
  return figures;
}

void Broker::set_times(const Times& times) {
  Locked lock(*this);
  peers_->greeting_max = times.greeting;
  peers_->offers().after_sender_max = times.after_sender;
  peers_->set_look_every(times.look);
  peers_->accept_pause = times.accept;
  peers_->wake();
}

void Broker::set_own_peers_end(bool end) {
  Locked lock(*this);
  peers_->own_peers_end = end;
}

std::vector<int> Broker::descriptors() {
  Locked lock(*this);
  return peers_->descriptors();
}

std::optional<std::string> Broker::verify() {
  Locked lock(*this);
  return peers_->verify();
}

}  // namespace pgalloc
