#include "guard/guard.h"

#include <sys/eventfd.h>

#include <algorithm>
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

void signal_event(int event_fd) {
  const uint64_t one = 1;
  (void)os::retry_interrupted([&] { return sys().write(event_fd, &one, sizeof one); });
}

void clear_event(int event_fd) {
  uint64_t count = 0;
  (void)os::retry_interrupted([&] { return sys().read(event_fd, &count, sizeof count); });
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
  std::vector<Watched> opened;
  for (const LevelFiles& files : levels) {
    if (auto level = MemoryLevel::open(files)) opened.push_back({std::move(*level), {}, {}, 0});
  }
  {
    MutexLock lock(mu_);
    levels_ = std::move(opened);
    ++configurations_;
    plan_ = GuardPlan(fill_rate_per_s(std::thread::hardware_concurrency()));
    configured_.store(!levels_.empty(), std::memory_order_release);
    credit_ = 0;
    start_if_wanted();
    wake();
  }
  arm_thresholds();
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
  arm_thresholds();
  return token;
}

// v1: the kernel says when usage gets near, between two samples. On the thread that configures, and
// without the lock: registering waits for a grace period of the kernel, tens of milliseconds,
// in which the guard must not stand still.
void Guard::arm_thresholds() {
  std::vector<std::pair<LevelFiles, uint64_t>> wanted;
  uint64_t configuration = 0;
  {
    MutexLock lock(mu_);
    GuardPlan plan(1);
    sample(plan);
    configuration = configurations_;
    for (const Watched& watched : levels_) {
      if (!watched.level.has_usage_threshold() || !watched.reading.limited()) continue;
      const uint64_t bytes = watched.reading.limit - headroom_of(watched);
      if (bytes != watched.threshold_bytes) wanted.emplace_back(watched.level.files(), bytes);
    }
  }
  for (const auto& [files, bytes] : wanted) {
    const auto level = MemoryLevel::open(files);
    os::Descriptor event(sys().eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!level || !event || !level->set_usage_threshold(event.get(), bytes)) continue;
    MutexLock lock(mu_);
    if (configurations_ != configuration) return;
    for (Watched& watched : levels_) {
      if (watched.level.files().path != files.path) continue;
      watched.threshold = std::move(event);
      watched.threshold_bytes = bytes;
      break;
    }
  }
}

void Guard::remove_headroom(uint64_t token) {
  MutexLock lock(mu_);
  headroom_requests_.erase(token);
}

void Guard::watch(int event_fd) {
  MutexLock lock(mu_);
  watchers_.push_back(event_fd);
  wanted_ = true;
  start_if_wanted();
}

void Guard::unwatch(int event_fd) {
  MutexLock lock(mu_);
  std::erase(watchers_, event_fd);
}

uint64_t Guard::headroom_of(const Watched& watched) const {
  uint64_t bytes = headroom_requests_.empty() ? kDefaultHeadroom.of(watched.reading.limit) : 0;
  for (const auto& [token, request] : headroom_requests_)
    bytes = std::max(bytes, request.of(watched.reading.limit));
  return bytes;
}

// The machine's own memory counts where no cgroup is tighter.
bool Guard::counts(const Watched& watched) const {
  if (!watched.reading.limited()) return false;
  if (watched.level.files().kind != LevelFiles::Kind::kMachine) return true;
  return std::none_of(levels_.begin(), levels_.end(), [&](const Watched& other) {
    return other.level.files().kind != LevelFiles::Kind::kMachine &&
           other.reading.limit <= watched.reading.limit;
  });
}

void Guard::sample(GuardPlan& plan) {
  for (Watched& watched : levels_) {
    // A level that cannot be read any more is as good as gone.
    watched.reading = watched.level.read(/*all=*/false).value_or(MemoryLevel::Reading{});
    if (!watched.reading.limited()) continue;
    if (watched.reading.available() < 2 * headroom_of(watched)) {
      watched.reading = watched.level.read(/*all=*/true).value_or(watched.reading);
    }
  }
  plan.begin();
  const uint64_t promised = reserved_bytes_.load();
  for (const Watched& watched : levels_) {
    if (!counts(watched)) continue;
    const uint64_t available = watched.reading.available();
    plan.see(available - std::min(available, promised), headroom_of(watched));
  }
  plan.end();
  ++status_.samples;
}

Guard::GuardStatus Guard::status() {
  MutexLock lock(mu_);
  GuardPlan plan(1);
  sample(plan);
  GuardStatus status = status_;
  status.running = thread_.joinable();
  status.alarm = alarm_;
  if (plan.available() != UINT64_MAX) status.available = plan.available();
  for (const Watched& watched : levels_) {
    const auto reading = watched.level.read(/*all=*/true).value_or(watched.reading);
    status.levels.push_back(
        {watched.level.files(), reading, reading.limited() ? headroom_of(watched) : 0});
  }
  return status;
}

// --- Room for what is about to be committed ------------------------------------------------------

void Guard::set_credit(uint64_t slack) {
  // Half: others use memory, too.
  credit_.store(static_cast<int64_t>(std::min<uint64_t>(slack / 2, INT64_MAX)),
                std::memory_order_relaxed);
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
  const auto wanted = static_cast<int64_t>(std::min<uint64_t>(bytes, INT64_MAX / 2));
  if (bytes <= kSmall && credit_.load(std::memory_order_relaxed) >= wanted &&
      credit_.fetch_sub(wanted, std::memory_order_relaxed) >= wanted) {
    return {};
  }
  bool waited = false;
  MutexLock lock(mu_);
  while (true) {
    GuardPlan plan(1);
    sample(plan);
    if (plan.slack() >= bytes) {
      set_credit(plan.slack() - bytes);
      admit(bytes, reservation);
      return {};
    }
    // What no discarding can make room for must not cost other allocations anything.
    if (exceeds_a_limit(bytes, /*even_if_empty=*/true)) return refuse(bytes);
    credit_ = 0;
    const uint64_t missing = std::max(bytes - plan.slack(), kBatchBytes / 8);
    mu_.unlock();
    const DiscardPass pass = discard(missing);
    mu_.lock();
    count(pass);
    if (!pass.exhausted || pass.given_back > 0) continue;
    if (!exceeds_a_limit(bytes, /*even_if_empty=*/false)) {
      admit(bytes, reservation);
      return {};
    }
    if (waited) return refuse(bytes);
    // Freed pages may still be on their way to the kernel.
    mu_.unlock();
    source_.load()->wait_for_reclaim(std::chrono::steady_clock::now() + std::chrono::seconds(1));
    mu_.lock();
    waited = true;
  }
}

Status Guard::refuse(uint64_t bytes) {
  ++status_.refusals;
  return Status::error(
      ErrorCode::kOutOfMemory,
      "committing " + std::to_string(bytes) +
          " bytes would exceed the memory limit, and nothing more can be discarded");
}

// Whatever the kernel drops by itself. Swap would be a way out.
bool Guard::exceeds_a_limit(uint64_t bytes, bool even_if_empty) {
  bool exceeds = false;
  for (Watched& watched : levels_) {
    const auto reading = watched.level.read(/*all=*/true);
    if (!reading) continue;
    if (reading->swap_free > 0) return false;
    // What the machine has left is an estimate: no reason to refuse anything.
    if (watched.level.files().kind == LevelFiles::Kind::kMachine || !reading->limited()) continue;
    const uint64_t cache = std::min(reading->file_cache, reading->usage);
    const uint64_t needed = even_if_empty ? 0 : reading->usage - cache;
    if (needed > reading->limit || bytes > reading->limit - needed) exceeds = true;
  }
  return exceeds;
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
  if (!wanted_ || levels_.empty() || parks_ > 0 || thread_.joinable()) return;
  if (!wake_) wake_ = os::Descriptor(sys().eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_) return;  // the next unpin tries again
  stops_ = false;
  try {
    const os::WithoutSignals quiet;
    thread_ = std::thread([this] { run(); });
  } catch (const std::system_error&) {
    wake_ = {};  // nor a thread; callers that commit memory still make room for it
  }
}

void Guard::wake() {
  if (wake_) signal_event(wake_.get());
}

void Guard::park() {
  std::thread thread;
  {
    MutexLock lock(mu_);
    ++parks_;
    stops_ = true;
    wake();
    thread = std::move(thread_);
  }
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
  sample(plan_);
  set_credit(plan_.slack());
  if (!plan_.crowded()) {
    alarm_ = Alarm::kNone;
    exhausted_ = false;
    return plan_.delay();
  }
  raise(Alarm::kLow);
  while (plan_.crowded() && !stops_) {
    const uint64_t shortfall = plan_.shortfall();
    mu_.unlock();
    const DiscardPass pass = discard(std::min(shortfall, kBatchBytes));
    mu_.lock();
    count(pass);
    sample(plan_);
    // A page here and there is written to again: that is no reason to go round and round.
    if (pass.exhausted && plan_.crowded() && pass.given_back < shortfall / 64 + 1) {
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
  for (const int event_fd : watchers_) signal_event(event_fd);
  source_.load()->start_evictions();
}

void Guard::sleep(GuardPlan::Duration delay) {
  std::vector<pollfd> files{{wake_.get(), POLLIN, 0}};
  for (const Watched& watched : levels_) {
    if (!watched.reading.limited()) continue;  // or gone, and then its events never end
    if (watched.threshold) files.push_back({watched.threshold.get(), POLLIN, 0});
    if (watched.level.events_fd() >= 0) files.push_back({watched.level.events_fd(), POLLPRI, 0});
  }
  const auto timeout_ms = static_cast<int>((delay.count() + 999) / 1000);
  mu_.unlock();
  const auto due = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  const int ready = sys().poll(files.data(), files.size(), timeout_ms);
  if (ready < 0) std::this_thread::sleep_for(GuardPlan::kDelayMin);
  mu_.lock();
  if (ready == 0) {
    const auto late = std::chrono::steady_clock::now() - due;
    plan_.came_late(std::chrono::duration_cast<GuardPlan::Duration>(late));
  }
  if (ready <= 0) return;
  clear_event(wake_.get());
  for (const Watched& watched : levels_) {
    if (watched.threshold) clear_event(watched.threshold.get());
    if (watched.level.events_fd() >= 0) watched.level.read_events();
  }
}

// --- fork ----------------------------------------------------------------------------------------

void Guard::before_fork() NO_THREAD_SAFETY_ANALYSIS { instance().mu_.lock(); }
void Guard::after_fork_in_parent() NO_THREAD_SAFETY_ANALYSIS { instance().mu_.unlock(); }
void Guard::after_fork_in_child() NO_THREAD_SAFETY_ANALYSIS {
  Guard& parents = instance();
  // Only the descriptors can be given back: the thread object stands for a thread that is not here.
  parents.levels_.clear();
  parents.wake_ = {};
  instance_.store(new Guard, std::memory_order_release);
  parents.mu_.unlock();
}

}  // namespace pgalloc
