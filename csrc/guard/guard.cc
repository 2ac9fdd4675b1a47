#include "guard/guard.h"

#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <exception>
#include <new>
#include <system_error>
#include <type_traits>
#include <utility>

#include "os/retry.h"
#include "os/syscalls.h"
#include "os/thread.h"

namespace pgalloc {

using os::sys;

namespace {

// So much may be committed without a sample, as long as there is credit.
constexpr uint64_t kSmall = uint64_t{256} << 10;
// So much is given back before the next sample, or what there is to find in so much time.
constexpr uint64_t kBatchBytes = uint64_t{8} << 20;
constexpr std::chrono::milliseconds kPass{4};
constexpr Headroom kDefaultHeadroom{.fraction = 0.1, .bytes = 0};
// Credit: how much may be committed at most without a look at the limits. A limit that is lowered by
// gigabytes must not find more than that on its way.
constexpr uint64_t kCreditMax = uint64_t{4} << 20;
// Of the page cache that counts as free so much is not relied on: a sixteenth.
constexpr uint64_t kCacheMargin = 16;
// So often memory may go without any more being free: others take it, or it is not what counts here.
constexpr int kVainPasses = 64;
// What nobody asks room for grows, too: the heap, page tables, what the kernel charges in batches. So
// much of the headroom is kept for it, even from commits that nothing can be discarded for.
uint64_t kept_for_the_rest(uint64_t limit) { return std::min(limit / 16, uint64_t{16} << 20); }
// How long a commit that is refused waits before: for freed pages to get to the kernel, and for what
// others reserved to be committed.
constexpr std::chrono::seconds kPatience{1};
// How often an idle process is looked after, and what it computes less than in that time.
constexpr std::chrono::milliseconds kIdlePeriod{120};
constexpr std::chrono::milliseconds kWork{2};
// A limit that was refused is tried again: so long usage does not grow by more than so much.
constexpr std::chrono::seconds kYield{10};
constexpr uint64_t kYieldRoom = uint64_t{32} << 20;

void signal_event(int event_fd) {
  const uint64_t one = 1;
  (void)os::retry_interrupted([&] { return sys().write(event_fd, &one, sizeof one); });
}

// Whether it was written to. What has got the number of one that was closed is not read.
bool clear_event(const os::Descriptor& event) {
  if (!event.intact()) return false;
  uint64_t count = 0;
  return os::retry_interrupted([&] { return sys().read(event.fd(), &count, sizeof count); }) > 0;
}

// Until there are files.
class NoFiles final : public DiscardSource {
 public:
  Discarded discard(uint64_t, Time) override { return {.exhausted = true}; }
  uint64_t sweep(uint64_t, bool) override { return 0; }
  bool any_unpinned() override { return false; }
  void start_evictions() override {}
  void wait_for_reclaim(Time) override {}
};

// Whether discards bring anything where it counts. What the owner of a peer's pages says that it gave back
// need not be true.
class Progress {
 public:
  bool seen(uint64_t available) {
    passes_ = available > best_ ? 0 : passes_ + 1;
    best_ = std::max(best_, available);
    return passes_ < kVainPasses;
  }

 private:
  uint64_t best_ = 0;
  int passes_ = 0;
};

// The guard's thread may outlive statics: this one has no destructor.
static_assert(std::is_trivially_destructible_v<NoFiles>);
constinit NoFiles no_files;

}  // namespace

std::atomic<DiscardSource*> Guard::source_{&no_files};
std::atomic<Guard*> Guard::instance_{new Guard};

CommitGate& commit_gate() { return Guard::instance(); }

Guard::Guard() : plan_(fill_rate_per_s(std::thread::hardware_concurrency())) {}

// --- What it knows -------------------------------------------------------------------------------

void Guard::configure(const std::vector<LevelFiles>& levels) {
  {
    MutexLock lock(mu_);
    limits_.watch(levels);
    begin_anew();
  }
  arm();
}

bool Guard::follow(const ProcFiles& where) {
  bool any = false;
  {
    MutexLock lock(mu_);
    any = limits_.follow(where);
    begin_anew();
  }
  arm();
  return any;
}

void Guard::begin_anew() {
  plan_ = GuardPlan(fill_rate_per_s(std::thread::hardware_concurrency()));
  configured_.store(!limits_.empty(), std::memory_order_release);
  credit_ = 0;
  start_if_wanted();
  wake();
}

// Whether there are other limits than before. Those that cannot be read for lack of memory stay.
bool Guard::notice_changes() try {
  noticed_ = std::chrono::steady_clock::now();
  const bool changed = limits_.refresh(noticed_);
  if (!changed) return false;
  credit_ = 0;
  for (Watched& watched : limits_.levels()) watched.yields_to = UINT64_MAX;
  start_arming();
  return true;
} catch (const std::bad_alloc&) {
  return false;
}

void Guard::notice_changes_if_due() {
  if (std::chrono::steady_clock::now() - noticed_ >= kPeriod) notice_changes();
}

uint64_t Guard::add_headroom(Headroom headroom) {
  uint64_t token = 0;
  {
    MutexLock lock(mu_);
    token = ++last_token_;
    headroom_requests_.emplace(token, headroom);
    credit_ = 0;
    wake();
  }
  arm();
  return token;
}

// v1: the kernel says when usage gets near, between two samples, and when it looks for memory in vain.
// Without the lock: registering waits for a grace period of the kernel, tens of milliseconds, in which
// the guard must not stand still.
void Guard::arm() {
  struct Wish {
    LevelFiles files;
    uint64_t threshold = 0;  // none
    bool vain_reclaim = false;
  };
  std::vector<Wish> wishes;
  uint64_t generation = 0;
  {
    MutexLock lock(mu_);
    GuardPlan plan(1);
    sample(plan);
    generation = limits_.generation();
    for (const Watched& watched : limits_.levels()) {
      if (!watched.level.is_v1_group()) continue;
      Wish wish{watched.level.files()};
      if (watched.reading.limited()) wish.threshold = watched.reading.limit - headroom_of(watched);
      if (wish.threshold == watched.threshold_bytes) wish.threshold = 0;
      wish.vain_reclaim = !watched.vain_reclaim.open();
      if (wish.threshold != 0 || wish.vain_reclaim) wishes.push_back(std::move(wish));
    }
  }
  for (const Wish& wish : wishes) {
    const auto level = MemoryLevel::open(wish.files);
    if (!level) continue;
    const auto registered = [](auto registers) {
      os::Descriptor event(sys().eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
      return event.open() && registers(event.fd()) ? std::move(event) : os::Descriptor{};
    };
    os::Descriptor threshold, vain_reclaim;
    if (wish.threshold != 0) {
      threshold =
          registered([&](int fd) { return level->set_usage_threshold(fd, wish.threshold); });
    }
    // Of the root group it would tell of the whole machine.
    if (wish.vain_reclaim && !level->is_root()) {
      vain_reclaim = registered([&](int fd) { return level->tell_of_vain_reclaim(fd); });
    }
    MutexLock lock(mu_);
    if (limits_.generation() != generation) return;
    for (Watched& watched : limits_.levels()) {
      if (watched.level.files() != wish.files) continue;
      if (threshold.open()) {
        watched.threshold = std::move(threshold);
        watched.threshold_bytes = wish.threshold;
      }
      if (vain_reclaim.open()) {
        watched.vain_reclaim = std::move(vain_reclaim);
        watched.hits = watched.hits_before = watched.level.hits().value_or(0);
      }
      break;
    }
  }
}

// Has another thread arm what changed.
void Guard::start_arming() {
  arms_again_ = true;
  if (arms_ || parks_ > 0) return;
  if (arming_.joinable()) arming_.join();  // at its end
  try {
    const os::WithoutSignals quiet;
    arms_ = true;
    arming_ = std::thread([this] {
      MutexLock lock(mu_);
      while (std::exchange(arms_again_, false)) {
        mu_.unlock();
        try {
          arm();
        } catch (const std::bad_alloc&) {  // NOLINT: it samples all the same
        }
        mu_.lock();
      }
      arms_ = false;
    });
  } catch (const std::exception&) {  // no thread, or no memory for one: the next change tries again
    arms_ = false;
  }
}

void Guard::remove_headroom(uint64_t token) {
  MutexLock lock(mu_);
  headroom_requests_.erase(token);
}

void Guard::watch(int event_fd) {
  MutexLock lock(mu_);
  watchers_.push_back(os::Descriptor::adopt(event_fd));
  wanted_ = true;
  start_if_wanted();
}

void Guard::unwatch(int event_fd) {
  MutexLock lock(mu_);
  const auto watcher =
      std::find_if(watchers_.begin(), watchers_.end(),
                   [&](const os::Descriptor& other) { return other.fd() == event_fd; });
  if (watcher == watchers_.end()) return;
  (void)watcher->release();
  watchers_.erase(watcher);
}

// Of the machine no more is kept free than this process could use.
uint64_t Guard::headroom_of(const Watched& watched) const {
  const uint64_t limit = watched.figures().limit;
  uint64_t bytes = headroom_requests_.empty() ? kDefaultHeadroom.of(limit) : 0;
  for (const auto& [token, request] : headroom_requests_)
    bytes = std::max(bytes, request.of(limit));
  return watched.is_machine() ? std::min(bytes, limits_.smallest_of_groups()) : bytes;
}

void Guard::sample(GuardPlan& plan) {
  limits_.read([this](const Watched& watched)
                   NO_THREAD_SAFETY_ANALYSIS { return headroom_of(watched); });
  plan.begin();
  const uint64_t promised = reserved_bytes_.load();
  for (const Watched& watched : limits_.levels()) {
    const MemoryLevel::Reading figures = watched.figures();
    if (!figures.limited()) continue;
    const uint64_t available = figures.available();
    plan.see(available - std::min(available, promised),
             headroom_of(watched) + figures.reclaimable / kCacheMargin);
  }
  plan.end();
  ++status_.samples;
}

Guard::GuardStatus Guard::status() {
  MutexLock lock(mu_);
  notice_changes();
  GuardPlan plan(1);
  sample(plan);
  GuardStatus status = status_;
  status.running = thread_.joinable();
  status.alarm = alarm_;
  if (plan.available() != UINT64_MAX) status.available = plan.available();
  for (const Watched& watched : limits_.levels()) {
    const auto reading = limits_.look_at(watched).value_or(watched.reading);
    if (watched.level.files().kind == LevelFiles::Kind::kAboveV1 && !reading.limited()) continue;
    status.levels.push_back(
        {watched.level.files(), reading, reading.limited() ? headroom_of(watched) : 0});
  }
  return status;
}

// --- Room for what is about to be committed ------------------------------------------------------

bool Guard::take_credit(uint64_t bytes) {
  const auto wanted = static_cast<int64_t>(bytes);
  return credit_.load(std::memory_order_relaxed) >= wanted &&
         std::chrono::steady_clock::now() < credit_ends_.load(std::memory_order_relaxed) &&
         credit_.fetch_sub(wanted, std::memory_order_relaxed) >= wanted;
}

void Guard::set_credit(uint64_t slack) {
  credit_ends_.store(std::chrono::steady_clock::now() + kPeriod, std::memory_order_relaxed);
  // Half: others use memory, too.
  credit_.store(static_cast<int64_t>(std::min(slack / 2, kCreditMax)), std::memory_order_relaxed);
}

void Guard::admit(uint64_t bytes, CommitReservation& reservation) {
  if (bytes <= kSmall) return;  // what credit is for
  reservation.begin(reserved_bytes_, bytes);
}

Guard::DiscardPass Guard::discard(uint64_t bytes) try {
  const auto begin = clock_.now();
  DiscardPass pass;
  const auto deadline = std::chrono::steady_clock::now() + kPass;
  DiscardSource& source = *source_.load();
  const DiscardSource::Discarded discarded = source.discard(bytes, deadline);
  pass.given_back = discarded.given_back;
  if (discarded.no_use()) {
    const uint64_t missing = bytes - std::min(bytes, pass.given_back);
    pass.given_back += source.sweep(missing, discarded.fruitless);
    pass.exhausted = pass.given_back < bytes;
    pass.nothing_unpinned = !source.any_unpinned();
  }
  pass.took = std::chrono::duration_cast<GuardPlan::Duration>(clock_.now() - begin);
  return pass;
} catch (const std::bad_alloc&) {
  return {.exhausted = true};
}

void Guard::count(const DiscardPass& pass) {
  if (pass.given_back > 0) ++status_.discards;
  status_.discarded_bytes += pass.given_back;
}

Status Guard::reserve(uint64_t bytes, CommitReservation& reservation) {
  if (!configured_.load(std::memory_order_acquire)) return {};
  if (bytes <= kSmall && take_credit(bytes)) return {};
  bool waited = false;
  std::optional<Time> others_until;
  Progress progress;
  MutexLock lock(mu_);
  while (true) {
    notice_changes_if_due();
    GuardPlan plan(1);
    sample(plan);
    if (plan.slack() >= bytes) {
      set_credit(plan.slack() - bytes);
      admit(bytes, reservation);
      return {};
    }
    // What no discarding can make room for must not cost other allocations anything.
    if (can_never_fit(bytes)) {
      if (notice_changes()) continue;
      return refuse(bytes);
    }
    credit_ = 0;
    const uint64_t missing = std::max(bytes - plan.slack(), kBatchBytes / 8);
    mu_.unlock();
    const DiscardPass pass = discard(missing);
    mu_.lock();
    count(pass);
    if ((!pass.exhausted || pass.given_back > 0) && progress.seen(plan.available())) continue;
    const Fit fit = look_for_room(bytes);
    const Time now = std::chrono::steady_clock::now();
    if (fit == Fit::kFits) {
      admit(bytes, reservation);
      return {};
    }
    if (fit == Fit::kWithoutOthers) {
      if (!others_until) others_until = now + kPatience;
      if (now >= *others_until) return refuse(bytes);
      mu_.unlock();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      mu_.lock();
      continue;
    }
    if (std::exchange(waited, true)) return refuse(bytes);
    mu_.unlock();
    source_.load()->wait_for_reclaim(now + kPatience);
    mu_.lock();
  }
}

bool Guard::lacks(uint64_t bytes) {
  MutexLock lock(mu_);
  notice_changes_if_due();
  GuardPlan plan(1);
  sample(plan);
  return plan.slack() < bytes;
}

Status Guard::refuse(uint64_t bytes) {
  ++status_.refusals;
  return Status::error(
      ErrorCode::kOutOfMemory,
      "committing " + std::to_string(bytes) +
          " bytes would exceed the memory limit, and nothing more can be discarded");
}

bool Guard::can_never_fit(uint64_t bytes) const {
  const uint64_t smallest = limits_.smallest_of_groups();
  return bytes > smallest && bytes - smallest > limits_.swap_room();
}

// After the kernel has dropped all that it can, and swapped out what it may.
Guard::Fit Guard::look_for_room(uint64_t bytes) const {
  const uint64_t swap_room = limits_.swap_room();
  const uint64_t promised = reserved_bytes_.load();
  Fit fit = Fit::kFits;
  for (const Watched& watched : limits_.levels()) {
    // What the machine has left is an estimate: no reason to refuse anything.
    if (watched.is_machine()) continue;
    const auto reading = limits_.look_at(watched);
    if (!reading || !reading->limited()) continue;
    const uint64_t kept = std::min(headroom_of(watched), kept_for_the_rest(reading->limit));
    const uint64_t needed = reading->usage - std::min(reading->cache, reading->usage) + kept;
    const uint64_t room = reading->limit + std::min(swap_room, UINT64_MAX - reading->limit);
    if (needed > room || bytes > room - needed) return Fit::kNever;
    if (promised > room - needed - bytes) fit = Fit::kWithoutOthers;
  }
  return fit;
}

// --- The thread ----------------------------------------------------------------------------------

void Guard::on_unpinned() {
  MutexLock lock(mu_);
  wanted_ = true;
  start_if_wanted();
  if (exhausted_) {
    exhausted_ = false;
    wake();
  }
  wants_unpins_.store(!thread_.joinable(), std::memory_order_relaxed);
}

void Guard::start_if_wanted() {
  if (!wanted_ || limits_.empty() || parks_ > 0 || thread_.joinable()) return;
  if (!wake_.open()) wake_ = os::Descriptor(sys().eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_.open()) return;  // the next unpin tries again
  stops_ = false;
  try {
    const os::WithoutSignals quiet;
    thread_ = std::thread([this] { run(); });
  } catch (const std::system_error&) {
    wake_ = {};  // nor a thread; callers that commit memory still make room for it
  }
}

void Guard::wake() {
  if (wake_.intact()) signal_event(wake_.fd());
}

void Guard::park() {
  std::thread thread, arming;
  {
    MutexLock lock(mu_);
    ++parks_;
    stops_ = true;
    wake();
    thread = std::move(thread_);
    arming = std::move(arming_);
  }
  if (arming.joinable()) arming.join();
  if (!thread.joinable()) return;
  thread.join();
  os::wait_until_gone(thread_id_);
  MutexLock lock(mu_);
  if (!thread_.joinable()) wake_ = {};
}

void Guard::resume() {
  MutexLock lock(mu_);
  if (parks_ > 0) --parks_;
  start_if_wanted();
  if (arms_again_) start_arming();
}

void Guard::run() {
  thread_id_ = os::thread_id();
  os::run_promptly();
  MutexLock lock(mu_);
  while (!stops_) {
    const GuardPlan::Duration delay = sample_and_react();
    if (!stops_) sleep(delay);
  }
}

GuardPlan::Duration Guard::step() {
  MutexLock lock(mu_);
  const bool stops = std::exchange(stops_, false);  // it is for the thread
  const GuardPlan::Duration delay = sample_and_react();
  stops_ = stops_ || stops;
  return delay;
}

GuardPlan::Duration Guard::sample_and_react() {
  notice_changes_if_due();
  if (std::exchange(gives_way_, false)) give_way();
  end_yielding_if_due();
  sample(plan_);
  set_credit(plan_.slack());
  if (!plan_.crowded()) {
    alarm_ = Alarm::kNone;
    exhausted_ = false;
    return plan_.delay();
  }
  raise(Alarm::kLow);
  Progress progress;
  while (plan_.crowded() && !stops_) {
    const uint64_t shortfall = plan_.shortfall();
    mu_.unlock();
    const DiscardPass pass = discard(std::min(shortfall, kBatchBytes));
    mu_.lock();
    count(pass);
    notice_changes_if_due();
    sample(plan_);
    // A page here and there is written to again: that is no reason to go round and round.
    const bool no_more = pass.exhausted && pass.given_back < shortfall / 64 + 1;
    if (plan_.crowded() && (no_more || !progress.seen(plan_.available()))) {
      plan_.found_nothing(pass.took, pass.nothing_unpinned);
      ++status_.shortfalls;
      exhausted_ = true;
      wants_unpins_.store(true, std::memory_order_relaxed);
      raise(plan_.critical() ? Alarm::kCritical : Alarm::kMedium);
      break;
    }
  }
  set_credit(plan_.slack());
  return plan_.delay();
}

// Notifies all listeners each time the alarm gets worse.
void Guard::raise(Alarm alarm) {
  if (alarm <= alarm_) return;
  if (alarm_ == Alarm::kNone) ++status_.crossings;
  alarm_ = alarm;
  for (const os::Descriptor& watcher : watchers_) {
    if (watcher.intact()) signal_event(watcher.fd());
  }
  source_.load()->start_evictions();
}

// In pieces, so that a move is noticed, and a limit of which the kernel does not tell. A process that
// does nothing is looked after less often: waking up is what costs.
void Guard::sleep(GuardPlan::Duration delay) {
  auto left = std::chrono::ceil<std::chrono::milliseconds>(delay);
  bool works = true;
  while (!stops_) {
    const auto piece = std::min(left, works ? kPeriod : kIdlePeriod);
    const auto begin = os::process_time();
    if (doze(piece) || left <= piece) return;
    works = os::process_time() - begin > kWork || !limits_.written().open();
    if (works ? notice_changes() : limits_.moved() && notice_changes()) return;
    left -= piece;
  }
}

// Whether it was woken.
bool Guard::doze(std::chrono::milliseconds longest) {
  std::array<pollfd, 64>
      files;  // of more levels than that it does not hear; it samples all the same
  size_t count = 0;
  const auto add = [&](const os::Descriptor& file, short events) {
    if (file.intact() && count < files.size()) files[count++] = {file.fd(), events, 0};
  };
  if (!wake_.intact()) wake_ = os::Descriptor(sys().eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  add(wake_, POLLIN);
  for (const Watched& watched : limits_.levels()) {
    add(watched.vain_reclaim, POLLIN);
    if (!watched.reading.limited()) continue;  // or gone, and then its events never end
    add(watched.threshold, POLLIN);
    add(watched.level.events(), POLLPRI);
  }
  add(limits_.written(), POLLIN);
  mu_.unlock();
  const auto due = std::chrono::steady_clock::now() + longest;
  const int ready = sys().poll(files.data(), count, static_cast<int>(longest.count()));
  if (ready < 0) std::this_thread::sleep_for(GuardPlan::kDelayMin);
  mu_.lock();
  if (ready == 0) {
    const auto late = std::chrono::steady_clock::now() - due;
    plan_.came_late(std::chrono::duration_cast<GuardPlan::Duration>(late));
  }
  if (ready <= 0) return ready < 0;
  clear_event(wake_);
  for (const Watched& watched : limits_.levels()) {
    clear_event(watched.threshold);
    watched.level.read_events();
  }
  hear_of_vain_reclaim();
  if (limits_.take_written()) notice_changes();
  return true;
}

// v1 refuses a limit below the usage after it looked for memory at that level. No charge has met the
// limit then; where one did lately, it is no sign of that.
void Guard::hear_of_vain_reclaim() {
  for (Watched& watched : limits_.levels()) {
    if (!clear_event(watched.vain_reclaim)) continue;
    const auto hits = watched.level.hits();
    if (!hits || *hits != watched.hits_before) continue;
    watched.yields_to = 0;  // until it is known how far it can
    gives_way_ = true;
  }
}

void Guard::end_yielding_if_due() {
  if (std::chrono::steady_clock::now() < yields_until_) return;
  for (Watched& watched : limits_.levels()) watched.yields_to = UINT64_MAX;
}

// Gives back all there is, and keeps it so for a while: the operator will try again.
void Guard::give_way() {
  raise(Alarm::kLow);
  const Time until = std::chrono::steady_clock::now() + kYield;
  for (bool exhausted = false; !exhausted && !stops_ && std::chrono::steady_clock::now() < until;) {
    mu_.unlock();
    const DiscardPass pass = discard(kBatchBytes);
    mu_.lock();
    count(pass);
    exhausted = pass.exhausted;
  }
  yields_until_ = std::chrono::steady_clock::now() + kYield;
  for (Watched& watched : limits_.levels()) {
    if (watched.yields_to == UINT64_MAX) continue;
    const auto reading = watched.level.read(MemoryLevel::Depth::kUsage);
    watched.yields_to = reading ? reading->usage + kYieldRoom : UINT64_MAX;
  }
}

// --- fork ----------------------------------------------------------------------------------------

void Guard::before_fork() NO_THREAD_SAFETY_ANALYSIS { instance().mu_.lock(); }
void Guard::after_fork_in_parent() NO_THREAD_SAFETY_ANALYSIS { instance().mu_.unlock(); }
void Guard::after_fork_in_child() NO_THREAD_SAFETY_ANALYSIS {
  Guard& parents = instance();
  // Only the descriptors can be given back: the thread object stands for a thread that is not here.
  parents.limits_.clear();
  parents.wake_ = {};
  instance_.store(new Guard, std::memory_order_release);
  parents.mu_.unlock();
}

}  // namespace pgalloc
