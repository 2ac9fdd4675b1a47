#include "guard/guard.h"

#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <exception>
#include <new>
#include <type_traits>
#include <utility>

#include "guard/event.h"
#include "guard/progress.h"
#include "os/syscalls.h"
#include "os/thread.h"

namespace pgalloc {

using os::sys;

namespace {

constexpr Headroom kDefaultHeadroom{.fraction = 0.1, .bytes = 0};
// Of the page cache that counts as free so much is not relied on: a sixteenth.
constexpr uint64_t kCacheMargin = 16;
// How often an idle process is looked after, and what it computes less than in that time.
constexpr std::chrono::milliseconds kIdlePeriod{200};
constexpr std::chrono::milliseconds kWork{2};

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

void Guard::remove_headroom(uint64_t token) {
  MutexLock lock(mu_);
  headroom_requests_.erase(token);
}

void Guard::set_headroom(std::optional<Headroom> headroom) {
  if (!headroom) return remove_headroom(kOfProcess);
  {
    MutexLock lock(mu_);
    headroom_requests_.insert_or_assign(kOfProcess, *headroom);
    credit_ = 0;
    wake();
  }
  arm();
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

void Guard::sample(GuardPlan& plan, const std::vector<LevelFiles>* only) {
  limits_.read([this](const Watched& watched)
                   NO_THREAD_SAFETY_ANALYSIS { return headroom_of(watched); });
  plan.begin();
  const uint64_t promised = reserved_bytes_.load();
  for (const Watched& watched : limits_.levels()) {
    const MemoryLevel::Reading figures = watched.figures();
    if (!figures.limited()) continue;
    const auto is_it = [&](const LevelFiles& other) {
      const LevelFiles& files = watched.level.files();
      return files.kind == other.kind && files.path == other.path;
    };
    if (only != nullptr && std::none_of(only->begin(), only->end(), is_it)) continue;
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
  } catch (const std::exception&) {
    wake_ =
        {};  // no thread, or no memory for it; callers that commit memory still make room for it
  }
}

void Guard::wake() {
  if (wake_.intact()) signal_event(wake_.fd());
}

void Guard::park() {
  std::thread thread;
  pid_t arming_id = 0;
  {
    MutexLock lock(mu_);
    ++parks_;
    stops_ = true;
    wake();
    thread = std::move(thread_);
    while (arms_) armed_.wait(mu_);
    arming_id = std::exchange(arming_id_, 0);
  }
  if (arming_id != 0) os::wait_until_gone(arming_id);
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
    const DiscardPass pass = discard(std::min(shortfall, kBatchBytes), 0);
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

// In pieces, so that a move or a new limit is noticed of which the kernel does not tell. A process that
// does nothing is looked after less often: waking up is what costs.
void Guard::sleep(GuardPlan::Duration delay) {
  const auto due = std::chrono::steady_clock::now() + delay;
  bool works = true;
  while (!stops_) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(due - std::chrono::steady_clock::now());
    if (left.count() <= 0) return;
    const auto begin = os::process_time();
    if (doze(std::min(left, works ? kPeriod : kIdlePeriod))) return;
    works = os::process_time() - begin > kWork || !limits_.writes().open();
    if (works ? notice_changes() : limits_.moved() && notice_changes()) return;
  }
}

// Whether there is a reason to sample.
bool Guard::doze(std::chrono::milliseconds longest) {
  std::array<pollfd, 64>
      files;  // of more levels than that it does not hear; it samples all the same
  size_t count = 0;
  const auto add = [&](const os::Descriptor& file, short events) {
    if (file.intact() && count < files.size()) files[count++] = {file.fd(), events, 0};
  };
  if (!wake_.intact()) wake_ = os::Descriptor(sys().eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  add(limits_.writes(), POLLIN);
  const bool listens = count > 0;
  add(wake_, POLLIN);
  for (const Watched& watched : limits_.levels()) {
    add(watched.vain_reclaim, POLLIN);
    if (!watched.reading.limited()) continue;  // or gone, and then its events never end
    add(watched.threshold, POLLIN);
    add(watched.level.events(), POLLPRI);
  }
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
  // Of other processes, too, which are moved from here to there.
  const bool heard = listens && files.front().revents != 0;
  const bool changed = heard && limits_.take_writes() && notice_changes();
  return changed || !heard || ready > 1;
}

// --- fork ----------------------------------------------------------------------------------------

void Guard::before_fork() NO_THREAD_SAFETY_ANALYSIS { instance().mu_.lock(); }
void Guard::after_fork_in_parent() NO_THREAD_SAFETY_ANALYSIS { instance().mu_.unlock(); }
void Guard::after_fork_in_child() NO_THREAD_SAFETY_ANALYSIS {
  Guard& parents = instance();
  // Only the descriptors can be given back: the thread object stands for a thread that is not here.
  auto* const own = new Guard;
  if (parents.limits_.followed()) {
    own->limits_.follow_later(*parents.limits_.followed());
    own->configured_ = true;
  }
  own->headroom_requests_.insert(parents.headroom_requests_.extract(kOfProcess));
  parents.limits_.clear();
  parents.wake_ = {};
  instance_.store(own, std::memory_order_release);
  parents.mu_.unlock();
}

}  // namespace pgalloc
