// Telling an owner what was let go of.

#include "sharing/owner_link.h"

#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <thread>

#include "native/support.h"

namespace pgalloc::owner_link_test {
namespace {

using native_tests::pages;

constexpr auto kAnHour = std::chrono::hours(1);
constexpr size_t kHeadBytes = sizeof(wire::Header);
constexpr size_t kRangeBytes = sizeof(wire::Pages);

// Both ends of a connection.
class Ends {
 public:
  Ends() { EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends_.data()), 0); }
  ~Ends() { close(); }
  Ends(const Ends&) = delete;
  Ends& operator=(const Ends&) = delete;

  int peer() const { return ends_[0]; }  // the link's own
  void send(std::string_view packet) const {
    EXPECT_EQ(::send(ends_[1], packet.data(), packet.size(), 0),
              static_cast<ssize_t>(packet.size()));
  }
  void close() {
    if (ends_[1] >= 0) ::close(ends_[1]);
    ends_[1] = -1;
  }
  std::string receive() const {
    std::string packet(1 << 16, '\0');
    packet.resize(static_cast<size_t>(::recv(ends_[1], packet.data(), packet.size(), 0)));
    return packet;
  }

 private:
  std::array<int, 2> ends_{-1, -1};
};

TEST(a_flush_ends_as_soon_as_all_is_on_its_way) {
  const Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  for (uint64_t i = 0; i < 20; ++i) {
    link->give_back(7, pages(i, i + 1));
    EXPECT(link->flush(std::chrono::steady_clock::now() + kAnHour));
    const std::string packet = ends.receive();
    EXPECT_EQ(packet, wire::pack(static_cast<uint8_t>(wire::Op::kRelease), 0,
                                 wire::Pages{7, pages(i, i + 1)}));
  }
}

TEST(what_was_given_back_while_parked_is_sent_after_that) {
  const Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  OwnerLink::park_all();
  link->give_back(7, pages(0, 1));
  link->give_back(7, pages(2, 4));
  OwnerLink::resume_all();
  EXPECT(link->flush(std::chrono::steady_clock::now() + kAnHour));
  EXPECT_EQ(ends.receive().size(), kHeadBytes + 2 * kRangeBytes);
}

TEST(answers_that_were_sent_before_the_owners_end_arrive) {
  for (const bool unread : {false, true}) {
    Ends ends;
    const auto link = std::move(*OwnerLink::create(ends.peer()));
    std::string got;
    const auto question = link->ask(wire::Op::kClaim, "an offer",
                                    {[&got](OwnerLink::Reply& reply) { got = reply.payload; }, {}});
    const auto other = link->ask(wire::Op::kPing, {}, {});
    (void)ends.receive();
    if (!unread) (void)ends.receive();
    ends.send(wire::pack(0, 1, std::string_view("pages")));
    ends.close();
    EXPECT(!link->has_hung_up());  // that comes behind the answer
    link->give_back(7, pages(0, 1));
    EXPECT(link->flush(std::chrono::steady_clock::now() + kAnHour));
    const OwnerLink::Patience patience{std::chrono::steady_clock::now() + kAnHour,
                                       [] { return true; }};
    EXPECT(link->await(question, patience).ok());
    EXPECT_EQ(got, "pages");
    EXPECT_EQ(link->await(other, patience).code(), ErrorCode::kOwnerGone);
    EXPECT(link->broken());
  }
}

TEST(answers_that_a_fork_keeps_back_arrive_after_the_owners_end) {
  Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  const auto later = std::chrono::steady_clock::now() + kAnHour;
  EXPECT(link->hold_answers(later));
  const auto question = link->ask(wire::Op::kClaim, "an offer", {});
  const auto other = link->ask(wire::Op::kPing, {}, {});
  ends.send(wire::pack(0, 1));
  ends.close();
  std::thread asks([&] { EXPECT(link->await(question, {later, [] { return true; }}).ok()); });
  EXPECT_EQ(link->await(other, {later, [] { return true; }}).code(), ErrorCode::kOwnerGone);
  EXPECT(link->broken());
  link->let_answers_in();
  asks.join();
}

TEST(an_owner_that_has_gone_is_noticed_by_what_is_given_back) {
  Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  ends.close();
  EXPECT(link->has_hung_up());
  link->give_back(7, pages(0, 1));
  EXPECT(link->flush(std::chrono::steady_clock::now() + kAnHour));
  EXPECT(link->broken());
}

TEST(nothing_is_kept_for_an_owner_that_has_gone) {
  const Ends ends;
  const auto link = std::move(*OwnerLink::create(ends.peer()));
  link->break_off();
  link->give_back(7, pages(0, 1));
  EXPECT(link->broken());
  EXPECT(link->flush(std::chrono::steady_clock::now() + kAnHour));
}

}  // namespace
}  // namespace pgalloc::owner_link_test
