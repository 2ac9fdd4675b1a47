// What was sent waits, is claimed once, and ends a while after its sender.

#include "sharing/offers.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

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
  uint64_t pages = 0;
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
    native_tests::drop_all(offers);
    for (auto& [file, range] : files) {
      EXPECT(*file->has_unique_ref(range));
      EXPECT(file->dec_ref(range).ok());
    }
  }
  // The first of the file's pages; all of them unless it is said how many. What is refused is not leased.
  Result<wire::Secret> send(size_t file, uint64_t sender, SteadyTime since, uint64_t count = 0,
                            std::optional<uint64_t> bytes_max = std::nullopt) {
    auto& [its, all] = files[file];
    const FileRange range{all.start, count == 0 ? all.end : all.start + count * page_size()};
    EXPECT(its->references().lease_anew(range).ok());
    return native_tests::add_or_drop(offers, {its, range, sender, 1, 1, since, 0, sender},
                                     bytes_max);
  }
  uint64_t pages_of(size_t file, uint64_t peer) const {
    return offers.bytes_of_peer(files[file].first->id(), peer) / page_size();
  }
  uint64_t pages_of_all(size_t file) const {
    return offers.bytes_of_all_peers(files[file].first->id()) / page_size();
  }
  void claim(const Result<wire::Secret>& secret) {
    const auto claimed = offers.claim(*secret);
    if (EXPECT(claimed.ok())) drop(*claimed);
  }
  // The same file with other pages.
  void take_more(size_t file, uint64_t count) {
    auto& [its, range] = files[file];
    EXPECT(its->dec_ref(range).ok());
    range = take_pages(*its, count);
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
  drop(expired.front());
  EXPECT_EQ(scene.offers.size(), 1u);
  EXPECT(!scene.offers.next_deadline());
}

TEST(offers_of_a_file_are_listed_so_many_at_once) {
  Scene scene;
  std::vector<Result<wire::Secret>> sent;
  for (int i = 0; i < 5; ++i)
    sent.push_back(scene.send(0, 7, kStart + std::chrono::seconds(i / 2)));
  (void)scene.send(1, 7, kStart);
  const uint64_t file = scene.files[0].first->id();
  std::optional<Offers::Key> last;
  std::vector<SteadyTime> listed;
  for (const size_t wanted : {2, 2, 1, 0}) {
    const auto some = scene.offers.of_file(file, 2, &last);
    EXPECT_EQ(some.size(), wanted);
    for (const Offer& offer : some) listed.push_back(offer.since);
    // That the last one has gone meanwhile changes nothing.
    if (wanted == 2) scene.claim(Result<wire::Secret>(last->secret));
  }
  EXPECT_EQ(listed.size(), 5u);
  EXPECT(std::ranges::is_sorted(listed));
}

TEST(one_peer_leaves_room_for_others) {
  Scene scene;
  for (size_t i = 0; i < Offers::kOfPeerMax; ++i) {
    if (!EXPECT(scene.send(0, 7, kStart).ok())) break;
  }
  Result<wire::Secret> refused = scene.send(0, 7, kStart);
  EXPECT_EQ(refused.status().code(), ErrorCode::kSharing);
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

TEST(l7_the_pages_of_one_file_that_a_peer_has_on_offer_are_limited) {
  Scene scene;
  const uint64_t four = 4 * page_size();
  const auto first = scene.send(0, 7, kStart, 4, four);
  const auto again = scene.send(0, 7, kStart, 4, four);  // takes no more memory
  EXPECT(first.ok() && again.ok());
  EXPECT_EQ(scene.pages_of(0, 7), 4u);
  const auto refused = scene.send(0, 7, kStart, 1, four);
  EXPECT_EQ(refused.status().code(), ErrorCode::kSharing);
  EXPECT(refused.status().describe().find(std::to_string(four)) != std::string::npos);
  EXPECT_EQ(scene.offers.size(), 2u);
  EXPECT(scene.send(1, 7, kStart, 4, four).ok());  // of another file
  EXPECT(scene.send(0, 8, kStart, 4, four).ok());  // another peer
  scene.claim(first);
  EXPECT(!scene.send(0, 7, kStart, 1, four).ok());
  scene.claim(again);
  EXPECT_EQ(scene.pages_of(0, 7), 0u);
  EXPECT(scene.send(0, 7, kStart, 1, four).ok());
  EXPECT(scene.send(0, 7, kStart, 3, four).ok());
  EXPECT(!scene.send(0, 7, kStart, 2, four).ok());
  EXPECT_EQ(scene.pages_of(0, 7), 4u);
  EXPECT_EQ(scene.offers.verify(), std::nullopt);
  scene.offers.sender_ended(7, kStart);
  for (const Offer& offer : scene.offers.take_expired(kStart + 10min, 10)) drop(offer);
  EXPECT_EQ(scene.pages_of(0, 7), 0u);
  EXPECT_EQ(scene.pages_of_all(0), 4u);
}

TEST(l7_sessions_of_one_process_have_one_limit) {
  Scene scene;
  const auto& [file, all] = scene.files[0];
  const auto send = [&](uint64_t sender, uint64_t first, uint64_t process) {
    const FileRange range{all.start + first * page_size(), all.start + (first + 2) * page_size()};
    EXPECT(file->references().lease_anew(range).ok());
    const Offer made{file, range, sender, 1, 1, kStart, 0, process};
    Result<wire::Secret> secret = scene.offers.add(made, 3 * page_size());
    if (!secret.ok()) drop(made);
    return secret;
  };
  EXPECT(send(7, 0, 7).ok());
  EXPECT(send(8, 0, 7).ok());  // the same pages
  EXPECT_EQ(send(8, 2, 7).status().code(), ErrorCode::kSharing);
  EXPECT(send(9, 2, 9).ok());
  EXPECT_EQ(scene.pages_of(0, 7), 2u);
  EXPECT_EQ(scene.offers.verify(), std::nullopt);
  // Those of one that has ended count until they are dropped.
  scene.offers.sender_ended(7, kStart);
  EXPECT_EQ(send(8, 2, 7).status().code(), ErrorCode::kSharing);
}

TEST(l7_without_a_limit_of_its_own_a_peer_has_a_quarter_and_all_have_a_half) {
  Scene scene;
  const uint64_t quarter = kChunkSize / page_size() / 4;  // of a file of make_file()
  scene.take_more(0, 2 * quarter);
  EXPECT(!scene.send(0, 7, kStart, quarter + 1).ok());
  EXPECT(scene.send(0, 7, kStart, quarter).ok());
  EXPECT(!scene.send(0, 7, kStart, 1).ok());
  EXPECT(scene.send(0, 8, kStart, quarter - 1).ok());
  EXPECT(scene.send(0, 9, kStart, 1).ok());
  EXPECT_EQ(scene.pages_of_all(0), 2 * quarter);
  EXPECT(!scene.send(0, 10, kStart, 1).ok());
  EXPECT(scene.send(0, 0, kStart).ok());  // the owner's own
  EXPECT(scene.send(0, 0, kStart, 1).ok());
  EXPECT_EQ(scene.pages_of_all(0), 2 * quarter);
  // One that may do more.
  EXPECT(scene.send(0, 11, kStart, 2 * quarter, UINT64_MAX).ok());
  EXPECT(!scene.send(0, 10, kStart, 1).ok());
  EXPECT_EQ(scene.offers.verify(), std::nullopt);
}

TEST(a_file_that_holds_less_than_its_capacity_limits_peers_to_a_part_of_that) {
  MemoryFileOptions options;
  options.capacity = kChunkSize;
  options.max_allocatable_bytes = 8 * page_size();
  const auto file = std::move(*MemoryFile::create(std::monostate{}, options));
  EXPECT_EQ(Offers::of_peer_max(*file), 2 * page_size());
  EXPECT_EQ(Offers::of_all_peers_max(*file), 4 * page_size());
}

TEST(offers_of_a_closed_file_cannot_be_claimed) {
  Offers offers;
  EXPECT(!offers.any_claimable());
  const auto file = make_file();
  const FileRange range = take_pages(*file, 1);
  EXPECT(file->references().lease_anew(range).ok());
  EXPECT(native_tests::add_or_drop(offers, {file, range, 0, 1, 1, kStart, 0}).ok());
  EXPECT(offers.any_claimable());
  EXPECT(file->close().ok());
  EXPECT(!offers.any_claimable());
  drop(offers.take_any());
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
            const uint64_t count = 1 + random.below(4);
            model.push_back({*scene.send(file, sender, now, count), file, sender, now, count});
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
      std::map<std::pair<uint64_t, uint64_t>, std::set<uint64_t>> counted;
      for (const Sent& sent : model) {
        EXPECT(scene.offers.file_of(sent.secret).has_value());
        if (sent.sender != 0) counted[{sent.file, sent.sender}].insert(sent.pages);
      }
      for (uint64_t each = 0; each < 3; ++each) {
        uint64_t of_all = 0;
        for (uint64_t peer = 0; peer < 5; ++peer) {
          const auto& counts = counted[{each, peer}];
          const uint64_t count = std::accumulate(counts.begin(), counts.end(), uint64_t{0});
          EXPECT_EQ(scene.pages_of(each, peer), count);
          of_all += count;
        }
        EXPECT_EQ(scene.pages_of_all(each), of_all);
      }
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
