// Peers without a connection: how often it is looked at them, and how what they held ends.

#include "sharing/departed.h"

#include <algorithm>

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
  void add(std::unique_ptr<Session> its, bool is_seen, SteadyTime now = kNow) {
    std::optional<PeerProcess> process;
    if (is_seen) process.emplace(::getpid());
    departed.add(Departed::make_place(), std::move(its), std::move(process), now);
  }
  void look(bool sees, SteadyTime now) {
    const auto look = departed.next_look(now);
    if (EXPECT(look.has_value())) departed.looked(*look, sees, now);
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
  EXPECT_EQ(scene.departed.next_look(kNow)->files.size(), 1u);
  SteadyTime now = kNow;
  std::chrono::nanoseconds pause = 1ms;
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
  const auto look = *scene.departed.next_look(kNow);
  scene.departed.looked(look, false, kNow);
  scene.departed.looked(look, false, kNow);
  scene.departed.looked(look, true, kNow);
  EXPECT_EQ(scene.ids(), (Ids{2, 1}));
  EXPECT_EQ(*scene.departed.next_time(), kNow);
  scene.look(false, kNow);
  for (int i = 0; i < 2; ++i) scene.departed.end_some(SIZE_MAX);
}

TEST(a_look_without_memory_proves_nothing) {
  const int fd = os::kernel().memfd_create("not mapped", 0);
  const PeerProcess here(::getpid());
  const Departed::Look look{&here, {FileIdentity::of(fd)}};
  EXPECT(!look.take());
  native_tests::all_fail = true;
  const bool sees = look.take();
  native_tests::all_fail = false;
  EXPECT(sees);
  ::close(fd);
}

}  // namespace
}  // namespace pgalloc::departed_test
