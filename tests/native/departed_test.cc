// Peers without a connection: how often it is looked at them, and how what they held ends.

#include "sharing/departed.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>

#include "native/memory.h"
#include "native/sharing.h"

namespace pgalloc::departed_test {
namespace {

using native_tests::make_file;
using native_tests::take_pages;
using namespace std::chrono_literals;

const SteadyTime kNow = std::chrono::steady_clock::now();

struct Scene {
  Scene() : file(make_file()), range(take_pages(*file, 8)) {}
  // Everything is given back.
  ~Scene() {
    native_tests::drop_all(offers);
    EXPECT(*file->has_unique_ref(range));
    EXPECT(file->dec_ref(range).ok());
  }
  // A peer with leases on so many pages, none next to another.
  std::unique_ptr<Session> session(uint64_t id, uint64_t pages) {
    auto made = std::make_unique<Session>(id, offers, Scope{}, 1, 1);
    References::Counts leases;
    for (uint64_t page = 0; page < pages; ++page) {
      const uint64_t start = range.start + 2 * page * page_size();
      leases.push_back({{start, start + page_size()}, 1});
      EXPECT(file->references().lease_anew(leases.back().first).ok());
    }
    EXPECT_EQ(made->adopt(file, leases), pages);
    return made;
  }
  // Each is of a process of its own, unless it is said which.
  void add(std::unique_ptr<Session> its, bool is_seen, SteadyTime now = kNow, pid_t pid = 0) {
    std::optional<PeerProcess> process;
    if (is_seen) process.emplace(pid != 0 ? pid : static_cast<pid_t>(1000 + its->id));
    departed.add(Departed::make_place(), std::move(its), std::move(process), now);
  }
  void look(bool sees, SteadyTime now, std::chrono::nanoseconds took = {}) {
    auto look = departed.next_look(now);
    if (!EXPECT(look.has_value())) return;
    for (auto& of : look->sessions) of.sees = sees;
    departed.looked(*look, now, took);
  }
  std::vector<uint64_t> ids() const {
    std::vector<uint64_t> found;
    departed.visit([&](const Session& session) { found.push_back(session.id); });
    return found;
  }

  const std::shared_ptr<MemoryFile> file;
  const FileRange range;
  Offers offers;
  Departed departed{offers};
};
using Ids = std::vector<uint64_t>;

TEST(who_holds_nothing_is_finished_at_once) {
  Scene scene;
  scene.add(scene.session(1, 0), true);
  EXPECT_EQ(scene.departed.size(), 0u);
  EXPECT(!scene.departed.ending());
  EXPECT_EQ(scene.departed.take_finished().size(), 1u);
  EXPECT(scene.departed.take_finished().empty());
}

TEST(who_never_lived_is_not_looked_at) {
  Scene scene;
  scene.add(scene.session(1, 2), false);
  EXPECT_EQ(scene.departed.size(), 1u);
  EXPECT(scene.departed.ending());
  EXPECT(!scene.departed.next_look(kNow));
  EXPECT(!scene.departed.next_time());
  EXPECT_EQ(scene.ids(), Ids{1});
  scene.departed.end_some(SIZE_MAX);
}

TEST(what_was_held_is_given_back_in_pieces_one_peer_after_the_other) {
  Scene scene;
  scene.add(scene.session(1, 3), false);
  scene.add(scene.session(2, 1), false);
  EXPECT_EQ(scene.ids(), (Ids{1, 2}));
  for (int i = 0; i < 2; ++i) {
    scene.departed.end_some(1);
    EXPECT_EQ(scene.ids(), (Ids{1, 2}));
  }
  scene.departed.end_some(2);
  EXPECT_EQ(scene.ids(), Ids{2});
  EXPECT(scene.departed.ending());
  scene.departed.end_some(2);
  EXPECT(!scene.departed.ending());
  EXPECT_EQ(scene.departed.size(), 0u);
  scene.departed.end_some(2);  // nothing is left
  const auto finished = scene.departed.take_finished();
  EXPECT_EQ(finished.size(), 2u);
  for (const auto& entry : finished) EXPECT(entry.session->holds_nothing());
}

TEST(a_process_is_looked_at_ever_less_often_but_every_five_seconds) {
  Scene scene;
  scene.add(scene.session(1, 1), true);
  EXPECT(!scene.departed.next_look(kNow - 1ns));
  EXPECT_EQ(*scene.departed.next_time(), kNow);
  const auto first = scene.departed.next_look(kNow);
  EXPECT_EQ(first->sessions.size(), 1u);
  EXPECT_EQ(first->sessions.front().files.size(), 1u);
  EXPECT(!scene.departed.next_look(kNow));  // one at a time
  EXPECT(!scene.departed.next_time());
  scene.departed.looked(*first, kNow);
  SteadyTime now = kNow + 1ms;
  std::chrono::nanoseconds pause = std::chrono::nanoseconds(1ms) * 5 / 4;
  for (int i = 0; i < 60; ++i) {
    scene.look(true, now);
    EXPECT_EQ(*scene.departed.next_time(), now + pause);
    EXPECT(!scene.departed.next_look(now + pause - 1ns));
    now += pause;
    pause = std::min<std::chrono::nanoseconds>(pause * 5 / 4, 5s);
  }
  EXPECT_EQ(pause, std::chrono::nanoseconds(5s));
  EXPECT(!scene.departed.ending());
  scene.look(false, now);
  EXPECT(scene.departed.ending());
  EXPECT(!scene.departed.next_time());
  scene.departed.end_some(SIZE_MAX);
}

TEST(each_has_its_turn) {
  Scene scene;
  for (const uint64_t id : {1, 2, 3}) scene.add(scene.session(id, 1), true);
  EXPECT_EQ(scene.ids(), (Ids{1, 2, 3}));
  scene.look(true, kNow);
  EXPECT_EQ(scene.ids(), (Ids{2, 3, 1}));
  EXPECT_EQ(*scene.departed.next_time(), kNow);
  scene.look(false, kNow);
  EXPECT_EQ(scene.ids(), (Ids{3, 1, 2}));  // 2 is ending
  scene.look(true, kNow);
  EXPECT(!scene.departed.next_look(kNow));
  EXPECT_EQ(*scene.departed.next_time(), kNow + 1ms);
  for (int i = 0; i < 2; ++i) scene.look(false, kNow + 1ms);
  for (int i = 0; i < 3; ++i) scene.departed.end_some(SIZE_MAX);
  EXPECT_EQ(scene.departed.size(), 0u);
}

TEST(one_look_at_a_process_is_for_all_its_sessions) {
  Scene scene;
  for (uint64_t id = 1; id <= 6; ++id)
    scene.add(scene.session(id, 1), true, kNow, id == 3 ? 99 : 98);
  auto look = *scene.departed.next_look(kNow);
  EXPECT_EQ(look.sessions.size(), 5u);
  for (auto& of : look.sessions) of.sees = of.session % 2 == 0;
  scene.departed.looked(look, kNow);
  EXPECT_EQ(scene.ids(), (Ids{3, 2, 4, 6, 1, 5}));  // the last two are ending
  const auto other = scene.departed.next_look(kNow);
  EXPECT_EQ(other->sessions.size(), 1u);
  scene.departed.looked(*other, kNow);
  for (int i = 0; i < 2; ++i) scene.look(false, kNow + 1ms);
  EXPECT(!scene.departed.next_time());
  while (scene.departed.ending()) scene.departed.end_some(SIZE_MAX);
}

TEST(a_process_is_looked_at_for_a_tenth_of_the_time_at_most) {
  Scene scene;
  scene.add(scene.session(1, 1), true, kNow, 98);
  scene.look(true, kNow, 20ms);
  EXPECT_EQ(*scene.departed.next_time(), kNow + 180ms);
  // However many of its connections end meanwhile.
  scene.add(scene.session(2, 1), true, kNow + 1ms, 98);
  EXPECT_EQ(*scene.departed.next_time(), kNow + 180ms);
  scene.add(scene.session(3, 1), true, kNow + 1ms, 99);
  EXPECT_EQ(*scene.departed.next_time(), kNow + 1ms);
  for (int i = 0; i < 2; ++i) scene.look(false, kNow + 180ms);
  while (scene.departed.ending()) scene.departed.end_some(SIZE_MAX);
}

TEST(a_look_tells_the_files_of_sessions_apart) {
  const int mapped = os::kernel().memfd_create("mapped", 0);
  const int other = os::kernel().memfd_create("not mapped", 0);
  EXPECT_EQ(::ftruncate(mapped, 4096), 0);
  void* const at = ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, mapped, 0);
  const PeerProcess here(::getpid());
  const FileIdentity yes = FileIdentity::of(mapped);
  const FileIdentity no = FileIdentity::of(other);
  Departed::Look look{&here, {{1, {no}}, {2, {yes, no}}, {3, {yes}}, {4, {}}}};
  look.take();
  std::vector<bool> sees;
  for (const auto& of : look.sessions) sees.push_back(of.sees);
  EXPECT(sees == std::vector<bool>({false, true, true, false}));
  ::munmap(at, 4096);
  ::close(mapped);
  ::close(other);
}

TEST(offers_wait_for_a_while_once_their_sender_has_ended) {
  Scene scene;
  for (const uint64_t sender : {1, 2}) {
    EXPECT(scene.file->references().lease_anew(scene.range).ok());
    EXPECT(scene.offers.add(Offer::now(scene.file, scene.range, sender, 1, 1)).ok());
  }
  scene.add(scene.session(1, 1), true, kNow);
  EXPECT(!scene.offers.next_deadline());  // it may live
  scene.add(scene.session(2, 0), true, kNow + 3s);
  EXPECT_EQ(*scene.offers.next_deadline(), kNow + 3s + scene.offers.after_sender_max);
  scene.look(false, kNow + 5s);
  EXPECT_EQ(scene.offers.verify(), std::nullopt);
  while (!scene.offers.empty()) {
    const SteadyTime deadline = *scene.offers.next_deadline();
    for (const Offer& offer : scene.offers.take_expired(deadline, 1)) {
      EXPECT_EQ(deadline, kNow + (offer.sender == 1 ? 5s : 3s) + scene.offers.after_sender_max);
      drop(offer);
    }
  }
  scene.departed.end_some(SIZE_MAX);
}

TEST(a_look_at_one_that_is_not_seen_any_more_changes_nothing) {
  Scene scene;
  scene.add(scene.session(1, 1), true);
  scene.add(scene.session(2, 1), true);
  auto look = *scene.departed.next_look(kNow);
  look.sessions.front().sees = false;
  scene.departed.looked(look, kNow);
  scene.departed.looked(look, kNow);
  look.sessions.front().sees = true;
  scene.departed.looked(look, kNow);
  EXPECT_EQ(scene.ids(), (Ids{2, 1}));
  EXPECT_EQ(*scene.departed.next_time(), kNow);
  scene.look(false, kNow);
  for (int i = 0; i < 2; ++i) scene.departed.end_some(SIZE_MAX);
}

TEST(a_look_without_memory_proves_nothing) {
  const int fd = os::kernel().memfd_create("not mapped", 0);
  const PeerProcess here(::getpid());
  Departed::Look look{&here, {{1, {FileIdentity::of(fd)}}}};
  bool& sees = look.sessions.front().sees;
  look.take();
  EXPECT(!sees);
  sees = true;
  native_tests::all_fail = true;
  look.take();
  native_tests::all_fail = false;
  EXPECT(sees);
  // Nor does one that was stopped.
  const std::atomic<bool> stop{true};
  look.take(&stop);
  EXPECT(sees);
  ::close(fd);
}

}  // namespace
}  // namespace pgalloc::departed_test
