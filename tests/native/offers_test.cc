// What was sent waits, is claimed once, and ends a while after its sender.

#include "sharing/offers.h"

#include <algorithm>
#include <map>

#include "native/memory.h"
#include "native/sharing.h"

namespace pgalloc::offers_test {
namespace {

using native_tests::make_file;
using native_tests::Random;
using native_tests::take_pages;
using namespace std::chrono_literals;

const SteadyTime kStart = std::chrono::steady_clock::now();

struct Sent {
  wire::Secret secret;
  uint64_t file;
  uint64_t sender;
  SteadyTime since;
};

class Scene {
 public:
  Scene() {
    for (auto& [file, range] : files) {
      file = make_file();
      range = take_pages(*file, 4);
    }
  }
  // Nothing is held any more but the pages' first references.
  ~Scene() {
    while (!offers.empty()) drop(offers.take_any());
    for (auto& [file, range] : files) {
      EXPECT(*file->has_unique_ref(range));
      EXPECT(file->dec_ref(range).ok());
    }
  }
  Result<wire::Secret> send(size_t file, uint64_t sender, SteadyTime since) {
    auto& [its, range] = files[file];
    EXPECT(its->references().lease_anew(range).ok());
    Offer offer{its, range, sender, 1, 1, since, 0};
    try {
      return offers.add(offer);
    } catch (const std::bad_alloc&) {
      drop(offer);
      throw;
    }
  }

  std::array<std::pair<std::shared_ptr<MemoryFile>, FileRange>, 3> files;
  Offers offers;
};

TEST(an_offer_is_claimed_once) {
  Scene scene;
  const auto secret = scene.send(0, 0, kStart);
  EXPECT_EQ(*scene.offers.file_of(*secret), scene.files[0].first->id());
  const auto claimed = scene.offers.claim(*secret);
  EXPECT(claimed.ok());
  drop(*claimed);
  EXPECT_EQ(scene.offers.claim(*secret).status().code(), ErrorCode::kSharing);
  EXPECT_EQ(scene.offers.verify(), std::nullopt);
}

TEST(offers_of_this_process_never_end_by_time) {
  Scene scene;
  (void)scene.send(0, 0, kStart);
  (void)scene.send(0, 7, kStart);
  EXPECT(!scene.offers.next_deadline());
  scene.offers.sender_ended(7, kStart + 1s);
  EXPECT_EQ(*scene.offers.next_deadline(), kStart + 1s + 10min);
  EXPECT(scene.offers.take_expired(kStart + 10min, 10).empty());
  const auto expired = scene.offers.take_expired(kStart + 1s + 10min, 10);
  EXPECT_EQ(expired.size(), 1u);
  drop(expired[0]);
  EXPECT_EQ(scene.offers.size(), 1u);
  EXPECT(!scene.offers.next_deadline());
}

TEST(one_peer_leaves_room_for_others) {
  Scene scene;
  for (size_t i = 0; i < Offers::kOfPeerMax; ++i) {
    if (!EXPECT(scene.send(0, 7, kStart).ok())) break;
  }
  const auto& [file, range] = scene.files[0];
  Result<wire::Secret> refused = scene.send(0, 7, kStart);
  EXPECT_EQ(refused.status().code(), ErrorCode::kSharing);
  EXPECT(file->references().drop_lease(range).ok());
  EXPECT(scene.send(0, 8, kStart).ok());
  EXPECT(scene.send(0, 0, kStart).ok());
  scene.offers.sender_ended(7, kStart);
  size_t taken = 0;
  for (;;) {
    const auto some = scene.offers.take_expired(kStart + 10min, 4096);
    for (const Offer& offer : some) drop(offer);
    taken += some.size();
    if (some.empty()) break;
  }
  EXPECT_EQ(taken, Offers::kOfPeerMax);
}

TEST(a_model_takes_the_same_steps) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Random random(seed);
    Scene scene;
    scene.offers.after_sender_max = 100s;
    std::vector<Sent> model;
    std::map<uint64_t, SteadyTime> ended;
    SteadyTime now = kStart;
    for (int step = 0; step < 300; ++step) {
      now += std::chrono::seconds(random.below(3));
      const uint64_t sender = random.below(5);
      const uint64_t file = random.below(3);
      switch (random.below(6)) {
        case 0:
        case 1:
          if (!ended.contains(sender)) {
            model.push_back({*scene.send(file, sender, now), file, sender, now});
          }
          break;
        case 2: {
          if (model.empty()) break;
          const auto one = model.begin() + static_cast<ptrdiff_t>(random.below(model.size()));
          const auto claimed = scene.offers.claim(one->secret);
          EXPECT(claimed.ok());
          drop(*claimed);
          model.erase(one);
          break;
        }
        case 3: {
          const SteadyTime latest = now - std::chrono::seconds(random.below(60));
          const size_t count = random.below(4);
          const auto taken = scene.offers.take_older(scene.files[file].first->id(), latest, count);
          for (const Offer& offer : taken) drop(offer);
          const auto old = [&](const Sent& sent) {
            return sent.file == file && sent.since <= latest;
          };
          const auto there_are = static_cast<size_t>(std::ranges::count_if(model, old));
          EXPECT_EQ(taken.size(), std::min(count, there_are));
          SteadyTime last = SteadyTime::min();
          for (const Offer& offer : taken) {
            EXPECT(offer.since >= last);
            last = offer.since;
          }
          std::erase_if(model, [&](const Sent& sent) {
            const bool gone = !scene.offers.file_of(sent.secret);
            EXPECT(!gone || old(sent));
            if (!gone && old(sent)) EXPECT(sent.since >= last);
            return gone;
          });
          break;
        }
        case 4:
          if (sender == 0 || !random.one_in(10)) break;
          scene.offers.sender_ended(sender, now);
          ended.try_emplace(sender, now);
          break;
        case 5: {
          for (const Offer& offer : scene.offers.take_expired(now, 1000)) drop(offer);
          std::erase_if(model, [&](const Sent& sent) {
            const auto end = ended.find(sent.sender);
            return end != ended.end() && end->second + 100s <= now;
          });
          break;
        }
      }
      EXPECT_EQ(scene.offers.verify(), std::nullopt);
      for (const Sent& sent : model) EXPECT(scene.offers.file_of(sent.secret).has_value());
    }
  }
}

TEST(memory_that_runs_out_leaves_offers_as_they_were) {
  Scene scene;
  (void)scene.send(0, 7, kStart);
  const uint64_t failures =
      native_tests::fail_each_allocation([&] { (void)scene.send(1, 8, kStart); },
                                         [&] {
                                           EXPECT_EQ(scene.offers.size(), 1u);
                                           EXPECT_EQ(scene.offers.verify(), std::nullopt);
                                         });
  EXPECT(failures > 3);
  EXPECT_EQ(scene.offers.size(), 2u);
  native_tests::all_fail = true;
  scene.offers.sender_ended(7, kStart);  // needs none
  native_tests::all_fail = false;
  EXPECT_EQ(scene.offers.verify(), std::nullopt);
}

}  // namespace
}  // namespace pgalloc::offers_test
