#include "sharing/owner_link.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <new>
#include <optional>
#include <system_error>
#include <tuple>
#include <utility>

#include "base/reserve.h"
#include "os/retry.h"
#include "os/syscalls.h"
#include "os/thread.h"

namespace pgalloc {

using os::sys;
using wire::Op;

namespace {

constexpr std::chrono::milliseconds kSlice{50};          // until Ctrl-C gets through
constexpr std::chrono::milliseconds kRetryPeriod{5};     // while the owner does not read
constexpr std::chrono::milliseconds kRoomPatience{100};  // for an owner that makes some
constexpr std::chrono::milliseconds kLinger{1};          // with what is given back
constexpr std::chrono::milliseconds kLastFlush{200};
constexpr int kOwnersEnd_ms = 2000;  // a process without sockets is soon gone

Status owner_gone() {
  return Status::error(ErrorCode::kOwnerGone,
                       "the process that owns these pages has ended, or has "
                       "closed the connection");
}

}  // namespace

std::atomic<bool> OwnerLink::all_parked_{false};

struct OwnerLink::Pending {
  wire::Op op = wire::Op::kPing;
  Exchange exchange;
  Status status;
  bool done = false;
  bool settling = false;  // arrived() runs
  bool given_up = false;
  bool held = false;  // the answer is there, and kept until a fork is over
};

void OwnerLink::Reply::close_descriptor() {
  if (descriptor >= 0) sys().close(std::exchange(descriptor, -1));
}

Result<std::shared_ptr<OwnerLink>> OwnerLink::create(int fd) { return create(Endpoint(fd)); }

Result<std::shared_ptr<OwnerLink>> OwnerLink::create(Endpoint socket) {
  if (!socket.open()) return Status::system_error(errno, "fstat");
  const bool waits = socket.set_timeout(kSlice);
  PeerProcess owner = PeerProcess::behind(socket.fd());
  std::shared_ptr<OwnerLink> link(new OwnerLink(std::move(socket), waits, std::move(owner)),
                                  &OwnerLink::destroy);
  link->enlist();
  return link;
}

namespace {

uint64_t next_link_number() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

}  // namespace

OwnerLink::OwnerLink(Endpoint socket, bool waits, PeerProcess owner)
    : number_(next_link_number()),
      waits_(waits),
      owner_process_(std::move(owner)),
      socket_(std::move(socket)) {}

Result<std::shared_ptr<OwnerLink>> OwnerLink::duplicate(int socket) {
  const int fd = sys().duplicate(socket);
  if (fd < 0) return Status::system_error(errno, "fcntl");
  return create(fd);
}

// In a forked child the thread is not there, and its handle cannot be destroyed.
void OwnerLink::destroy(OwnerLink* link) NO_THREAD_SAFETY_ANALYSIS {
  if (link->forked()) {
    link->unlist();
    std::ignore = link->thread_.release();
    link->socket_.close();
    return;
  }
  if (link->leave_to_thread()) return;
  link->break_off();
  link->park();
  link->unlist();
  delete link;
}

// If there is something to send that the owner does not take yet, or if it was its own thread that had the
// last thing that knew it: the thread destroys it once all is sent.
bool OwnerLink::leave_to_thread() {
  {
    MutexLock lock(mu_);
    const bool its_own = runs_ && thread_id_ == os::thread_id();
    if (!its_own && send_queued()) return false;
    if (!its_own) wake_thread();
    orphaned_ = runs_;
    if (orphaned_) return true;
  }
  (void)flush(std::chrono::steady_clock::now() + kLastFlush);  // no thread is to be had
  return false;
}

// --- Sending -------------------------------------------------------------------------------------

// Sends what it can at once. True if nothing is left. It needs no memory.
bool OwnerLink::send_queued() {
  while (!outgoing_.empty() && !broken()) {
    switch (outgoing_.send_next(socket_)) {
      case Endpoint::Io::kDone:
        break;
      case Endpoint::Io::kAgain:
      case Endpoint::Io::kRefused:
        return false;
      case Endpoint::Io::kEnded:
        // What it has sent before can still be read: those who wait for answers find the end behind it.
        outgoing_.clear();
        if (pending_.empty()) end("it has closed the connection");
        return true;
      case Endpoint::Io::kLost:
        end("the descriptor of the connection was closed");
        return true;
    }
  }
  return true;
}

void OwnerLink::give_back(uint64_t file, FileRange range) {
  if (forked()) return;
  MutexLock lock(mu_);
  if (broken()) return;
  try {
    with_reserve([&]() NO_THREAD_SAFETY_ANALYSIS { outgoing_.add({file, range}); });
  } catch (const std::bad_alloc&) {
    return;  // it is given back with the connection
  }
  if (idle_ || thread_ == nullptr) wake_thread();
}

void OwnerLink::make_room_to_give_back(size_t count) {
  if (forked() || count == 0) return;
  MutexLock lock(mu_);
  outgoing_.make_spares(count);
}

bool OwnerLink::flush(Time deadline) {
  if (forked()) return true;
  MutexLock lock(mu_);
  while (!send_queued()) {
    const Time now = std::chrono::steady_clock::now();
    if (now >= deadline) return false;
    (void)changed_.wait_until(mu_, std::min(deadline, now + kRetryPeriod));
  }
  destroy_ended();
  return true;
}

// --- Requests ------------------------------------------------------------------------------------

uint32_t OwnerLink::enqueue(Op op, const std::string& payload,
                            const std::shared_ptr<Pending>& pending) {
  do {
    last_number_ = last_number_ == UINT32_MAX ? 1 : last_number_ + 1;
  } while (pending_.contains(last_number_));
  pending->op = op;
  outgoing_.make_spares(1);  // to give back what the answer brings
  try {
    pending_.emplace(last_number_, pending);
    outgoing_.add(op, last_number_, payload);
  } catch (...) {
    pending_.erase(last_number_);
    outgoing_.drop_spares(1);
    throw;
  }
  return last_number_;
}

Status OwnerLink::request(Op op, const std::string& payload, Exchange exchange,
                          const Patience& patience) {
  if (forked()) return Status::error(ErrorCode::kForked, "the connection is the parent's");
  if (payload.size() > wire::kPayloadBytesMax) {
    return Status::error(ErrorCode::kSharing,
                         std::to_string(payload.size()) + " bytes are too much for one request");
  }
  const Question question = ask(op, payload, std::move(exchange));
  return question == nullptr ? owner_gone() : await(question, patience);
}

bool OwnerLink::is_to_this_process() const {
  return owner_process_.is_same(PeerProcess(::getpid()));
}

uint64_t OwnerLink::ask_for_room(uint64_t bytes, uint64_t commit) {
  const Time now = std::chrono::steady_clock::now();
  if (broken() || now < no_room_until_.load(std::memory_order_relaxed)) return 0;
  const auto given_back = std::make_shared<uint64_t>(0);
  const Exchange exchange{
      [given_back](Reply& reply) { (void)wire::Reader(reply.payload).read_all(*given_back); }, {}};
  std::string payload;
  wire::append(payload, bytes, commit);
  const Status status =
      request(Op::kMakeRoom, payload, exchange, {now + kRoomPatience, [] { return true; }});
  if (status.ok() && *given_back > 0) return *given_back;
  may_have_room_.store(false, std::memory_order_relaxed);
  no_room_until_.store(now + (status.ok() ? no_room_pause : no_answer_pause),
                       std::memory_order_relaxed);
  return 0;
}

OwnerLink::Question OwnerLink::ask(Op op, const std::string& payload, Exchange exchange) {
  auto pending = std::make_shared<Pending>();
  pending->exchange = std::move(exchange);
  MutexLock lock(mu_);
  if (broken()) return nullptr;
  (void)enqueue(op, payload, pending);
  (void)send_queued();
  return pending;
}

Status OwnerLink::await(const Question& question, const Patience& patience) {
  std::shared_ptr<Pending> pending = question;
  MutexLock lock(mu_);
  while (true) {
    const bool sent = send_queued();
    if (pending->done) break;
    const Time now = std::chrono::steady_clock::now();
    if (now >= patience.deadline) {
      // What lies there already is not late: this process may have been stopped.
      if (!reading_ && !broken() && read(now)) continue;
      return give_up(pending,
                     Status::error(ErrorCode::kTimedOut,
                                   "the process that owns these pages has not answered in time"));
    }
    Time until = std::min(patience.deadline, now + kSlice);
    if (!sent) until = std::min(until, now + kRetryPeriod);
    if (reading_ || broken()) {
      (void)changed_.wait_until(mu_, until);
    } else {
      read(until);
    }
    if (pending->done) break;
    lock.unlock();
    const bool goes_on = patience.keep_waiting();
    if (forked()) {  // by a signal handler: the lock is not ours to take
      (void)new std::shared_ptr<Pending>(std::move(pending));
      // What the handler raises there is its own.
      return goes_on ? Status::error(ErrorCode::kForked, "the request was the parent's")
                     : Status::error(ErrorCode::kInterrupted, "");
    }
    lock.lock();
    if (!goes_on) return give_up(pending, Status::error(ErrorCode::kInterrupted, ""));
  }
  destroy_ended();
  return std::move(pending->status);
}

// The asker does not wait any more. If the answer has come all the same, it is undone here.
Status OwnerLink::give_up(const std::shared_ptr<Pending>& pending, Status why) {
  while (pending->settling) changed_.wait(mu_);
  if (pending->done) {
    if (pending->status.ok() && pending->exchange.undo) {
      const MutexUnlock unlocked(mu_);
      pending->exchange.undo();
    }
    return why;
  }
  pending->given_up = true;
  ++unattended_;
  wake_thread();
  return why;
}

void OwnerLink::post(Op op, const std::string& payload, Exchange exchange) {
  if (forked()) return;
  auto pending = std::make_shared<Pending>();
  pending->exchange = std::move(exchange);
  MutexLock lock(mu_);
  if (broken()) return;
  (void)enqueue(op, payload, pending);
  pending->given_up = true;
  ++unattended_;
  wake_thread();
}

// --- Receiving -----------------------------------------------------------------------------------

// Waits for a packet until then, or until a signal comes; and sees to it. False if there was none. It
// needs no memory.
bool OwnerLink::read(Time until) {
  Endpoint::Received received;
  reading_ = true;  // until the packet has been seen to: it lies in buffer_
  const Endpoint::Io io = receive(until, &received);
  std::optional<wire::Packet> packet;
  if (io == Endpoint::Io::kDone && !received.truncated) {
    packet = wire::parse({buffer_.get(), received.size}, nullptr);
  }
  if (broken() || io == Endpoint::Io::kEnded) {
    end("it has closed the connection");
  } else if (io == Endpoint::Io::kLost) {
    end("the descriptor of the connection was closed");
  } else if (io == Endpoint::Io::kDone && !packet) {
    end("it does not keep to the protocol");
  }
  Reply reply{packet ? packet->payload : std::string_view(), received.descriptor};
  if (packet && !broken()) {
    dispatch({packet->kind, packet->number, reply, received.lost_descriptor});
  } else {
    reply.close_descriptor();
  }
  reading_ = false;
  if (broken()) socket_.close();
  changed_.notify_all();
  if (unattended_ > 0 || ends_) wake_thread();  // it reads on
  return packet.has_value();
}

// Without the lock: others may ask meanwhile.
Endpoint::Io OwnerLink::receive(Time until, Endpoint::Received* received) {
  const MutexUnlock unlocked(mu_);
  const auto left =
      std::chrono::ceil<std::chrono::milliseconds>(until - std::chrono::steady_clock::now());
  Endpoint::Io io = Endpoint::Io::kRefused;
  int error = 0;
  if (waits_ && left >= kSlice) {  // one system call less
    io = socket_.wait(buffer_.get(), kBufferSize, received, &error);
  } else {
    pollfd waits{socket_.fd(), POLLIN, 0};
    const int ready = sys().poll(&waits, 1, static_cast<int>(std::max<int64_t>(left.count(), 0)));
    if (ready >= 0 || errno == EINTR)
      io = socket_.receive(buffer_.get(), kBufferSize, received, &error);
  }
  if (io == Endpoint::Io::kRefused) std::this_thread::sleep_for(kRetryPeriod);
  return io;
}

// Until the fork is over.
void OwnerLink::hold(Arrived arrived, Pending& pending) try {
  held_.reserve(held_.size() + 1);
  std::string payload(arrived.reply.payload);
  held_.push_back({arrived, std::move(payload)});
  pending.held = true;
} catch (const std::bad_alloc&) {
  arrived.reply.close_descriptor();
  take_back(arrived, pending);
  pending.status = Status::error(ErrorCode::kNoMemory, "no memory is left for the answer");
  pending.done = true;
}

// There is no memory for what the answer brings: it is given back by what was spared for that.
void OwnerLink::take_back(const Arrived& arrived, const Pending& pending) {
  wire::Pages pages;
  const bool brings = pending.op == Op::kAllocate || pending.op == Op::kClaim;
  if (!brings || arrived.status != 0 || !wire::Reader(arrived.reply.payload).read(pages)) return;
  outgoing_.add(pages);
}

// What the asker is told.
Status OwnerLink::settle(Arrived& arrived, const Pending& pending) try {
  if (arrived.status != 0) return wire::unpack_error(arrived.status, arrived.reply.payload);
  // The pages of a claim are there without it.
  if (arrived.lost_descriptor && pending.op != Op::kClaim) {
    return Status::system_error(EMFILE, "recvmsg");
  }
  if (pending.exchange.arrived) pending.exchange.arrived(arrived.reply);
  return {};
} catch (const std::bad_alloc&) {
  return Status::error(ErrorCode::kNoMemory, "no memory is left for the answer");
}

void OwnerLink::dispatch(Arrived arrived) {
  const auto found = pending_.find(arrived.number);
  if (found == pending_.end()) return arrived.reply.close_descriptor();  // an answer to nothing
  if (holding_ && found->second->op != Op::kFork) return hold(arrived, *found->second);
  std::shared_ptr<Pending> pending = std::move(found->second);
  pending_.erase(found);
  pending->settling = true;
  ++settling_;
  Status status;
  {
    const MutexUnlock unlocked(mu_);
    status = settle(arrived, *pending);
  }
  --settling_;
  if (!status.ok() && status.code() == ErrorCode::kNoMemory) take_back(arrived, *pending);
  outgoing_.drop_spares(1);
  pending->settling = false;
  pending->status = std::move(status);
  const bool unwanted = pending->given_up;
  if (unwanted) --unattended_;
  pending->done = true;
  changed_.notify_all();
  const MutexUnlock unlocked(mu_);
  arrived.reply.close_descriptor();
  if (unwanted && pending->status.ok() && pending->exchange.undo) pending->exchange.undo();
  pending.reset();  // it may own a file, which gives back what it holds
}

// --- The end -------------------------------------------------------------------------------------

void OwnerLink::end(const char* why) {
  if (!reading_) socket_.close();  // else the thread that reads does it
  broken_.store(true, std::memory_order_release);
  outgoing_ = {};
  for (auto entry = pending_.begin(); entry != pending_.end();) {
    std::shared_ptr<Pending>& pending = entry->second;
    if (pending->held) {  // its answer has come
      ++entry;
      continue;
    }
    pending->status = Status::error(
        ErrorCode::kOwnerGone,
        std::string("the process that owns these pages has ended, or does not answer: ") + why);
    pending->done = true;
    if (pending->given_up) --unattended_;
    // To be destroyed without the lock: it may own a file, which gives back what it holds.
    ended_.push_back(std::move(pending));
    entry = pending_.erase(entry);
  }
  changed_.notify_all();
  work_.notify_all();
}

void OwnerLink::break_off() {
  if (forked()) return;
  MutexLock lock(mu_);
  if (broken()) return;
  if (socket_.intact()) ::shutdown(socket_.fd(), SHUT_RDWR);  // wakes who reads
  end("the connection was closed here");
  destroy_ended();
}

void OwnerLink::break_off_when_settled() {
  if (forked()) return;
  MutexLock lock(mu_);
  if (broken()) return;
  ends_ = true;
  wake_thread();
}

void OwnerLink::destroy_ended() {
  if (ended_.empty()) return;
  auto ended = std::exchange(ended_, {});
  const MutexUnlock unlocked(mu_);
  for (const auto& pending : ended) pending->exchange = {};
  ended.clear();
}

bool OwnerLink::awaits_answers() {
  if (forked()) return false;
  MutexLock lock(mu_);
  return unattended_ > 0 && std::ranges::any_of(pending_, [](const auto& entry) {
           return entry.second->given_up && entry.second->exchange.undo;
         });
}

bool OwnerLink::has_hung_up() {
  if (broken() || forked()) return true;
  MutexLock lock(mu_);
  if (!socket_.intact()) return true;
  if (!pending_.empty() || settling_ > 0)
    return false;  // answers may lie there: who reads finds the end
  return is_over();
}

// Also if answers that were sent before still lie there.
bool OwnerLink::is_over() {
  pollfd waits{socket_.fd(), 0, 0};
  return sys().poll(&waits, 1, 0) > 0 && (waits.revents & (POLLHUP | POLLERR | POLLNVAL)) != 0;
}

// Once it is known it stays known: the number may be another process's later.
bool OwnerLink::owner_has_ended() {
  if (!owner_has_ended_ && owner_process_.has_ended()) owner_has_ended_ = true;
  return owner_has_ended_;
}

bool OwnerLink::is_cut_off() {
  {
    MutexLock lock(mu_);
    if (!broken() && socket_.intact() && !is_over()) return false;
  }
  return !owner_ends(kOwnersEnd_ms);
}

bool OwnerLink::owner_ends(int patience_ms) {
  for (int i = 0; i < patience_ms; ++i) {
    if (owner_has_ended()) return true;
    (void)sys().poll(nullptr, 0, 1);
  }
  return false;
}

// --- The thread ----------------------------------------------------------------------------------

// Without a thread the queue waits for the next call that gives something back, or flushes.
void OwnerLink::wake_thread() {
  idle_ = false;
  if (thread_ != nullptr) return work_.notify_all();
  if (stops()) return;
  try {
    const os::WithoutSignals quiet;
    thread_ = std::make_unique<std::thread>([this] { run(); });
    runs_ = true;
  } catch (const std::system_error&) {
    thread_ = nullptr;
  }
}

void OwnerLink::run() {
  thread_id_ = os::thread_id();
  MutexLock lock(mu_);
  do {
    while (!stops()) work();
    destroy_ended();
  } while (!stops());
  runs_ = false;
  if (!orphaned_) return;
  thread_->detach();
  lock.unlock();
  unlist();
  delete this;
}

// Sends, reads, or waits until there is something to do.
void OwnerLink::work() {
  if (!send_queued()) {
    (void)work_.wait_until(mu_, std::chrono::steady_clock::now() + kRetryPeriod);
  } else if (unattended_ > 0 && !reading_) {
    read(std::chrono::steady_clock::now() + kSlice);
  } else if (ends_ && pending_.empty() && settling_ == 0 && !reading_) {
    end("the connection was closed here");
  } else if (!stops()) {
    idle_ = true;
    work_.wait(mu_);
    idle_ = false;
    // The next request takes along what is given back: one packet, and one thread that wakes up.
    if (unattended_ == 0 && !stops())
      (void)work_.wait_until(mu_, std::chrono::steady_clock::now() + kLinger);
  }
}

void OwnerLink::park() {
  {
    MutexLock lock(mu_);
    parked_ = true;
  }
  stop_thread();
}

// REQUIRES: nothing lets it go on.
void OwnerLink::stop_thread() {
  std::unique_ptr<std::thread> thread;
  {
    MutexLock lock(mu_);
    work_.notify_all();
    thread = std::move(thread_);
  }
  if (thread == nullptr) return;
  thread->join();
  os::wait_until_gone(thread_id_);
}

// Without a thread, the next call that needs it tries again.
void OwnerLink::resume() {
  MutexLock lock(mu_);
  if (!outgoing_.empty() || unattended_ > 0) wake_thread();
}

// --- What is known of it ---------------------------------------------------------------------------

OwnerLink::Owner OwnerLink::owner() const {
  MutexLock lock(mu_);
  return owner_;
}

void OwnerLink::set_owner(Owner owner) {
  MutexLock lock(mu_);
  owner_ = std::move(owner);
}

std::vector<wire::Pages> OwnerLink::loose_leases() const {
  MutexLock lock(mu_);
  return loose_;
}

void OwnerLink::note_loose(const wire::Pages& pages) {
  if (forked()) return;
  MutexLock lock(mu_);
  loose_.push_back(pages);
}

void OwnerLink::forget_loose(const wire::Pages& pages) {
  if (forked()) return;
  MutexLock lock(mu_);
  const auto found = std::find_if(loose_.begin(), loose_.end(), [&](const wire::Pages& each) {
    return each.file == pages.file && each.range == pages.range;
  });
  if (found != loose_.end()) loose_.erase(found);
}

}  // namespace pgalloc
