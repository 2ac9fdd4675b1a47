// The guard, in folders that only look like cgroups, with a source that gives what a test wants.

#include "guard/guard.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <optional>
#include <thread>

#include "native/memory.h"
#include "native/sharing.h"
#include "os/thread.h"

namespace pgalloc::guard_test {
namespace {

using native_tests::FakeKernel;
using native_tests::make_file;
using native_tests::take_pages;
using Alarm = Guard::Alarm;
using Kind = LevelFiles::Kind;

constexpr uint64_t kMib = uint64_t{1} << 20;
constexpr uint64_t kLimit = 1000 * kMib;  // its headroom is 100 MiB

struct Source final : DiscardSource {
  Discarded discard(uint64_t bytes_max, Time) override {
    discards.push_back(bytes_max);
    return on_discard ? on_discard(bytes_max) : Discarded{.exhausted = true};
  }
  uint64_t sweep(uint64_t bytes_max, bool waiting) override {
    sweeps.emplace_back(bytes_max, waiting);
    return swept;
  }
  bool any_unpinned() override { return true; }
  void start_evictions() override { ++evictions; }
  void wait_for_reclaim(Time) override {
    ++waits;
    if (on_wait) on_wait();
  }

  std::function<Discarded(uint64_t)> on_discard;
  std::function<void()> on_wait;
  std::vector<uint64_t> discards;
  std::vector<std::pair<uint64_t, bool>> sweeps;
  uint64_t swept = 0;
  int evictions = 0;
  int waits = 0;
};

// The guard of this process, whose thread does not run, and one level.
struct Scene {
  explicit Scene(Kind its_kind = Kind::kV2) : kind(its_kind) {
    std::filesystem::create_directory(folder);
    Guard::set_source(source);
    guard.park();
    if (kind == Kind::kMachine) {
      set(kLimit, 0);
    } else {
      write(kind == Kind::kV1 ? "cgroup.event_control" : "memory.events", "");
      write("memory.high", "max\n");
      cache(0);
      set(kLimit, 0);
    }
  }
  ~Scene() {
    guard.configure({});
    std::filesystem::remove_all(folder);
  }
  void write(const char* name, const std::string& text) const {
    std::ofstream(folder / name) << text;
  }
  std::string read(const char* name) const {
    std::ifstream file(folder / name);
    std::string text;
    std::getline(file, text);
    return text;
  }
  void set(uint64_t limit, uint64_t usage, uint64_t swap_free = 0) const {
    if (kind == Kind::kMachine) {
      write("meminfo", "MemTotal: " + std::to_string(limit / 1024) +
                           " kB\nMemAvailable: " + std::to_string((limit - usage) / 1024) +
                           " kB\nSwapFree: " + std::to_string(swap_free / 1024) + " kB\n");
      return;
    }
    const bool v1 = kind == Kind::kV1;
    write(v1 ? "memory.limit_in_bytes" : "memory.max", std::to_string(limit) + "\n");
    write(v1 ? "memory.usage_in_bytes" : "memory.current", std::to_string(usage) + "\n");
  }
  void use(uint64_t usage) const { set(kLimit, usage); }
  void cache(uint64_t bytes) const {
    const std::string total = kind == Kind::kV1 ? "total_" : "";
    write("memory.stat", total + "inactive_file " + std::to_string(bytes) + "\n");
  }
  LevelFiles files() const { return {kind, kind == Kind::kMachine ? folder / "meminfo" : folder}; }
  void configure() { guard.configure({files()}); }
  Guard::GuardStatus status() { return guard.status(); }

  const Kind kind;
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("pgalloc_guard_" + std::to_string(::getpid()));
  static inline Source& source = *new Source;
  Guard& guard = Guard::instance();
};

TEST(its_thread_runs_once_there_is_something_to_do) {
  Scene scene;
  const auto file = make_file();
  Discardable entry;
  entry.range = take_pages(*file, 1);
  scene.guard.resume();
  scene.configure();
  EXPECT(!scene.status().running);  // nothing is unpinned
  EXPECT(file->unpin(entry).ok());
  EXPECT(scene.status().running);
  scene.guard.park();
  scene.guard.park();
  EXPECT(!scene.status().running);
  scene.guard.resume();
  EXPECT(!scene.status().running);
  scene.guard.resume();
  EXPECT(scene.status().running);
  scene.guard.park();
  EXPECT(file->end_handle(entry).ok());
}

// Its caller has unpinned something, and is not told otherwise.
TEST(without_memory_for_its_thread_the_next_unpin_starts_it) {
  Scene scene;
  const auto file = make_file();
  Discardable entry;
  entry.range = take_pages(*file, 1);
  EXPECT(file->unpin(entry).ok());
  scene.configure();
  bool failed = true;
  for (int64_t left = 0; failed; ++left) {
    native_tests::allocations_left = left;
    scene.guard.resume();
    commit_gate().note_unpinned();
    failed = native_tests::allocations_left < 0;
    native_tests::allocations_left = -1;
    commit_gate().note_unpinned();
    EXPECT(scene.status().running);
    scene.guard.park();
  }
  EXPECT(file->end_handle(entry).ok());
}

TEST(without_a_limit_to_watch_there_is_no_thread) {
  Scene scene;
  const int event = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  scene.guard.resume();
  scene.guard.watch(event);
  EXPECT(!scene.status().running);
  EXPECT(!scene.status().available);
  scene.configure();
  EXPECT(scene.status().running);
  scene.guard.park();
  scene.guard.unwatch(event);
  ::close(event);
}

std::atomic<int> polls{0};
std::atomic<pid_t> polling{0};
int poll_refused(pollfd*, nfds_t, int) {
  polling = os::thread_id();
  return ++polls, errno = EIO, -1;
}
long sleeps_of(pid_t thread) {
  std::ifstream file("/proc/self/task/" + std::to_string(thread) + "/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("voluntary_ctxt_switches:")) return std::stol(line.substr(24));
  }
  return -1;
}

TEST(a_thread_that_cannot_wait_sleeps_all_the_same) {
  Scene scene;
  FakeKernel kernel;
  kernel.calls.poll = poll_refused;
  kernel.begin();
  scene.configure();
  scene.guard.resume();
  scene.guard.watch(-1);
  EXPECT(scene.status().running);
  while (polls < 50) std::this_thread::yield();
  EXPECT(sleeps_of(polling) >= 25);  // some end before they have begun
  scene.guard.park();
  scene.guard.unwatch(-1);
}

// The number of the guard's inotify, eventfd or file is a file of the program's by then.
TEST(what_has_got_the_number_of_a_closed_descriptor_is_left_alone) {
  Scene scene;
  const std::filesystem::path path = scene.folder / "precious";
  std::ofstream(path) << "precious";
  scene.configure();
  const int event = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  scene.guard.watch(event);
  const int first = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_APPEND);
  std::vector<int> taken;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const std::string target = std::filesystem::read_symlink(entry.path(), gone);
    const int fd = std::stoi(entry.path().filename());
    const bool is_guards = target.find("pgalloc_guard_") != std::string::npos ||
                           target == "anon_inode:inotify" || fd == event;
    if (is_guards && target != path) taken.push_back(fd);
  }
  EXPECT(taken.size() > 4);
  const uint64_t before = scene.status().crossings;
  for (const int fd : taken) ::dup2(first, fd);
  scene.use(kLimit - 10 * kMib);
  scene.guard.resume();
  while (scene.status().crossings == before) std::this_thread::yield();  // it sees again
  scene.guard.remove_headroom(scene.guard.add_headroom({.fraction = 0, .bytes = kMib}));
  scene.guard.park();
  scene.guard.unwatch(event);
  scene.guard.configure({});
  std::string text;
  std::getline(std::ifstream(path), text);
  EXPECT_EQ(text, "precious");
  for (const int fd : taken) {
    EXPECT(::fcntl(fd, F_GETFD) >= 0);
    ::close(fd);
  }
  ::close(first);
}

TEST(each_look_is_counted) {
  Scene scene;
  scene.configure();
  const uint64_t before = scene.status().samples;
  EXPECT_EQ(scene.status().samples, before + 1);
  (void)scene.guard.step();
  EXPECT_EQ(scene.status().samples, before + 3);
}

TEST(page_cache_is_looked_at_where_less_than_two_headrooms_are_left) {
  Scene scene;
  scene.configure();
  scene.cache(70 * kMib);
  scene.use(kLimit - 200 * kMib);
  EXPECT_EQ(*scene.status().available, 200 * kMib);
  scene.use(kLimit - 200 * kMib + 1);
  EXPECT_EQ(*scene.status().available, 270 * kMib - 1);
}

TEST(the_headroom_is_a_tenth_or_the_largest_request) {
  Scene scene;
  scene.configure();
  const auto headroom = [&] { return scene.status().levels[0].headroom; };
  EXPECT_EQ(headroom(), 100 * kMib);
  const uint64_t small = scene.guard.add_headroom({.fraction = 0, .bytes = 20 * kMib});
  EXPECT_EQ(headroom(), 20 * kMib);
  const uint64_t large = scene.guard.add_headroom({.fraction = 0, .bytes = 30 * kMib});
  EXPECT(large != small);
  EXPECT_EQ(headroom(), 30 * kMib);
  scene.guard.remove_headroom(large);
  EXPECT_EQ(headroom(), 20 * kMib);
  scene.guard.remove_headroom(small);
  EXPECT_EQ(headroom(), 100 * kMib);
}

TEST(v1_is_told_once_where_the_headroom_begins) {
  Scene scene(Kind::kV1);
  scene.configure();
  const auto threshold = [&] {
    const std::string text = scene.read("cgroup.event_control");
    return text.substr(text.rfind(' ') + 1);
  };
  EXPECT_EQ(threshold(), std::to_string(900 * kMib));
  scene.write("cgroup.event_control", "");
  const uint64_t one = scene.guard.add_headroom({.fraction = 0, .bytes = 100 * kMib});
  EXPECT_EQ(threshold(), "");  // it is there already
  const uint64_t other = scene.guard.add_headroom({.fraction = 0, .bytes = 300 * kMib});
  EXPECT_EQ(threshold(), std::to_string(700 * kMib));
  scene.guard.remove_headroom(one);
  scene.guard.remove_headroom(other);
}

TEST(all_limits_count_at_once) {
  Scene group;
  for (const uint64_t available : {kMib, 2 * kLimit}) {
    const std::string meminfo = "MemTotal: " + std::to_string(64 * kLimit / 1024) +
                                " kB\nMemAvailable: " + std::to_string(available / 1024) + " kB\n";
    group.write("meminfo", meminfo);
    group.guard.configure({group.files(), {Kind::kMachine, group.folder / "meminfo"}});
    const auto status = group.status();
    EXPECT_EQ(*status.available, std::min(available, kLimit));
    // Of the machine no more is kept free than the group may use.
    EXPECT_EQ(status.levels[1].headroom, kLimit);
  }
}

TEST(a_limit_above_the_mount_counts_where_no_level_explains_it) {
  Scene group(Kind::kV1);
  group.write("memory.stat", "hierarchical_memory_limit " + std::to_string(kLimit / 2) + "\n");
  group.guard.configure({group.files(), {Kind::kAboveV1, group.folder, group.folder}});
  EXPECT_EQ(*group.status().available, kLimit / 2);
  group.write("memory.stat", "hierarchical_memory_limit " + std::to_string(kLimit) + "\n");
  for (int refresh = 0; refresh < 8; ++refresh) (void)group.status();
  EXPECT_EQ(*group.status().available, kLimit);
  EXPECT_EQ(group.status().levels.size(), 1u);
}

TEST(a_limit_that_changes_voids_the_credit) {
  Scene scene;
  scene.configure();
  (void)scene.guard.step();
  scene.set(4 * kMib, 4 * kMib - (300 << 10));
  (void)scene.guard.status();  // it notices
  CommitReservation small;
  EXPECT(scene.guard.reserve(4096, small).ok());
  EXPECT(!scene.source.discards.empty());
  EXPECT(!scene.guard.reserve(256 << 10, small).ok());
}

TEST(credit_is_a_few_mib_however_much_is_free) {
  Scene scene;
  scene.configure();
  (void)scene.guard.step();
  const uint64_t before = scene.status().samples;
  for (int commit = 0; commit < 64; ++commit) {
    CommitReservation small;
    EXPECT(scene.guard.reserve(256 << 10, small).ok());
  }
  EXPECT(scene.status().samples >= before + 4);
}

TEST(the_page_cache_that_counts_as_free_is_not_relied_on_to_the_last_byte) {
  Scene scene;
  scene.configure();
  scene.cache(160 * kMib);
  scene.use(kLimit);
  const auto step = [&] {
    scene.source.discards.clear();
    (void)scene.guard.step();
    return !scene.source.discards.empty();
  };
  EXPECT(!step());  // 160 MiB are available, the headroom is 100, the margin 10
  scene.cache(105 * kMib);
  EXPECT(step());
}

TEST(v1_gives_way_to_a_limit_below_the_usage) {
  Scene scene(Kind::kV1);
  scene.write("memory.pressure_level", "");
  scene.write("memory.failcnt", "7\n");
  scene.guard.resume();
  const int event = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  scene.guard.watch(event);
  scene.use(kLimit / 2);
  scene.write("cgroup.event_control", "");
  std::atomic<uint64_t> left{kLimit / 4};
  scene.source.on_discard = [&](uint64_t bytes_max) {
    const uint64_t given = std::min<uint64_t>(bytes_max, left);
    left -= given;
    scene.use(kLimit / 4 + left);
    return DiscardSource::Discarded{.given_back = given, .exhausted = left == 0};
  };
  scene.configure();
  const std::string request = scene.read("cgroup.event_control");
  EXPECT(request.ends_with(" critical,local"));
  const int told = std::stoi(request);  // the guard's eventfd, to which the kernel would write
  const auto tell = [&] {
    const uint64_t one = 1;
    EXPECT_EQ(::write(told, &one, sizeof one), ssize_t{sizeof one});
  };
  // A charge that met the limit is no sign of it.
  scene.write("memory.failcnt", "8\n");
  tell();
  const uint64_t before = scene.status().samples;
  while (scene.status().samples < before + 3) std::this_thread::yield();
  while (left != 0) {
    tell();
    std::this_thread::yield();
  }
  scene.guard.park();
  // It does not grow again at once: 32 MiB, less the headroom of what it was taken down to.
  scene.use(kLimit / 4 + 33 * kMib);
  scene.source.discards.clear();
  (void)scene.guard.step();
  EXPECT(!scene.source.discards.empty());
  scene.guard.unwatch(event);
  ::close(event);
}

TEST(a_limit_that_is_near_raises_the_alarm_and_is_made_room_for) {
  Scene scene;
  const int event = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  scene.guard.watch(event);
  scene.configure();
  const auto is_told = [&] {
    uint64_t count = 0;
    return ::read(event, &count, sizeof count) == sizeof count;
  };
  uint64_t usage = kLimit - 100 * kMib;
  scene.use(usage);
  (void)scene.guard.step();
  EXPECT(!is_told());
  EXPECT(scene.source.discards.empty());
  // Less than the headroom is left: a quarter more than that is made free, 8 MiB at a time.
  usage += kMib;
  scene.use(usage);
  scene.source.on_discard = [&](uint64_t bytes_max) {
    usage -= bytes_max;
    scene.use(usage);
    return DiscardSource::Discarded{.given_back = bytes_max};
  };
  const auto before = scene.status();
  (void)scene.guard.step();
  EXPECT(is_told());
  EXPECT_EQ(usage, kLimit - 125 * kMib);
  EXPECT_EQ(scene.source.discards, (std::vector<uint64_t>{8 * kMib, 8 * kMib, 8 * kMib, 2 * kMib}));
  EXPECT_EQ(scene.source.evictions, 1);
  EXPECT(scene.source.sweeps.empty());
  const auto after = scene.status();
  EXPECT(after.alarm == Alarm::kLow);  // until the next look
  EXPECT_EQ(after.crossings, before.crossings + 1);
  EXPECT_EQ(after.discards, before.discards + 4);
  EXPECT_EQ(after.discarded_bytes, before.discarded_bytes + 26 * kMib);
  EXPECT_EQ(after.shortfalls, before.shortfalls);
  (void)scene.guard.step();
  EXPECT(scene.status().alarm == Alarm::kNone);
  EXPECT(!is_told());
  scene.guard.unwatch(event);
  scene.source.on_discard = nullptr;
  scene.use(kLimit);
  (void)scene.guard.step();
  EXPECT(!is_told());
  ::close(event);
}

TEST(where_nothing_can_be_given_back_the_alarm_gets_worse) {
  Scene scene;
  scene.configure();
  scene.use(kLimit - 25 * kMib);  // a quarter of the headroom
  const auto before = scene.status();
  (void)scene.guard.step();
  EXPECT(scene.status().alarm == Alarm::kMedium);
  EXPECT_EQ(scene.source.discards.size(), 1u);
  EXPECT_EQ(scene.source.sweeps, (std::vector<std::pair<uint64_t, bool>>{{8 * kMib, false}}));
  EXPECT_EQ(scene.status().discards, before.discards);  // there was none
  EXPECT_EQ(scene.status().shortfalls, before.shortfalls + 1);
  scene.use(kLimit - 25 * kMib + 1);
  (void)scene.guard.step();
  EXPECT(scene.status().alarm == Alarm::kCritical);
  EXPECT_EQ(scene.status().crossings, before.crossings + 1);
}

TEST(a_commit_that_leaves_the_headroom_free_needs_no_discard) {
  Scene scene;
  CommitReservation before;
  EXPECT(scene.guard.reserve(UINT64_MAX, before).ok());  // no limit is known
  scene.configure();
  scene.use(kLimit - 200 * kMib);
  {
    CommitReservation first;
    EXPECT(scene.guard.reserve(60 * kMib, first).ok());
    EXPECT_EQ(*scene.status().available, 140 * kMib);  // as if it were used already
    CommitReservation second;
    EXPECT(scene.guard.reserve(40 * kMib, second).ok());
    EXPECT(scene.source.discards.empty());
    CommitReservation third;
    EXPECT(scene.guard.reserve(kMib, third).ok());  // as it cannot be helped, into the headroom
    EXPECT(!scene.source.discards.empty());
  }
  EXPECT_EQ(*scene.status().available, 200 * kMib);
}

TEST(a_commit_that_can_never_fit_costs_nothing) {
  Scene scene;
  scene.configure();
  scene.use(kLimit - 10 * kMib);
  const auto before = scene.status();
  CommitReservation reservation;
  EXPECT_EQ(scene.guard.reserve(kLimit + 1, reservation).code(), ErrorCode::kOutOfMemory);
  EXPECT(scene.source.discards.empty());
  EXPECT_EQ(scene.status().refusals, before.refusals + 1);
  EXPECT_EQ(scene.guard.reserve(kLimit, reservation).code(), ErrorCode::kOutOfMemory);
  EXPECT(!scene.source.discards.empty());
  EXPECT_EQ(scene.status().refusals, before.refusals + 2);
}

TEST(a_commit_that_exceeds_the_limit_is_refused_after_all_was_tried) {
  for (const bool helps : {false, true}) {
    Scene scene;
    scene.configure();
    scene.source = {};
    scene.use(kLimit - 26 * kMib);
    scene.source.on_wait = [&] {
      (void)scene.guard.status();  // no lock is held while this waits
      if (helps) scene.use(kLimit - 27 * kMib);
    };
    const auto before = scene.status();
    CommitReservation reservation;
    EXPECT_EQ(scene.guard.reserve(11 * kMib, reservation).ok(), helps);
    EXPECT_EQ(scene.source.waits, 1);
    EXPECT_EQ(scene.source.discards.size(), 2u);
    EXPECT_EQ(scene.status().refusals, before.refusals + !helps);
    if (helps) continue;
    EXPECT(scene.guard.reserve(10 * kMib, reservation).ok());  // up to what is kept for the rest
    EXPECT_EQ(scene.source.waits, 1);
  }
}

TEST(what_is_kept_for_the_rest_is_never_more_than_the_headroom) {
  Scene scene;
  scene.configure();
  scene.use(kLimit - 40 * kMib);
  CommitReservation reservation;
  EXPECT(!scene.guard.reserve(24 * kMib + 1, reservation).ok());
  const uint64_t token = scene.guard.add_headroom({.fraction = 0, .bytes = 4 * kMib});
  EXPECT(!scene.guard.reserve(36 * kMib + 1, reservation).ok());
  EXPECT(scene.guard.reserve(36 * kMib, reservation).ok());
  scene.guard.remove_headroom(token);
}

TEST(what_others_reserved_is_not_given_twice) {
  Scene scene;
  scene.configure();
  scene.use(kLimit - 40 * kMib);
  std::optional<CommitReservation> first(std::in_place);
  EXPECT(scene.guard.reserve(20 * kMib, *first).ok());
  CommitReservation second;
  EXPECT(!scene.guard.reserve(20 * kMib, second).ok());
  // Once it is committed, it does not count twice: the one that waits gets what is left.
  scene.source.on_discard = [&](uint64_t) {
    if (first) scene.use(kLimit - 20 * kMib);
    first.reset();
    return DiscardSource::Discarded{.exhausted = true};
  };
  EXPECT(scene.guard.reserve(4 * kMib, second).ok());
}

TEST(what_the_kernel_drops_by_itself_is_room_for_a_commit) {
  Scene scene;
  scene.configure();
  scene.use(kLimit - 26 * kMib);
  scene.cache(5 * kMib);
  CommitReservation fits;
  EXPECT(scene.guard.reserve(15 * kMib, fits).ok());
  CommitReservation too_much;
  EXPECT(!scene.guard.reserve(15 * kMib + 1, too_much).ok());
}

TEST(the_machines_own_memory_refuses_nothing) {
  Scene scene(Kind::kMachine);
  scene.configure();
  scene.set(kLimit, kLimit - 10 * kMib);
  CommitReservation reservation;
  EXPECT(scene.guard.reserve(20 * kMib, reservation).ok());
  EXPECT(!scene.source.discards.empty());
}

TEST(swap_is_a_way_out) {
  for (const uint64_t swap_free : {uint64_t{0}, 9 * kMib, 10 * kMib}) {
    Scene scene;
    scene.write("meminfo", "MemTotal: 99999999 kB\nMemAvailable: 99999999 kB\nSwapFree: " +
                               std::to_string(swap_free / 1024) + " kB\n");
    scene.guard.configure({{Kind::kMachine, scene.folder / "meminfo"}, scene.files()});
    scene.use(kLimit - 26 * kMib);
    CommitReservation reservation;
    EXPECT_EQ(scene.guard.reserve(20 * kMib, reservation).ok(), swap_free >= 10 * kMib);
  }
}

TEST(f6_what_is_lacking_is_what_touches_the_headroom) {
  Scene scene;
  EXPECT(!scene.guard.lacks(kLimit));  // no limit is known
  scene.use(800 * kMib);
  scene.configure();
  EXPECT(!scene.guard.lacks(100 * kMib));
  EXPECT(scene.guard.lacks(100 * kMib + 1));
  EXPECT(Scene::source.discards.empty());  // it only looks
}

}  // namespace
}  // namespace pgalloc::guard_test
