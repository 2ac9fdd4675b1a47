// Telling an owner what was let go of.

#include "sharing/owner_link.h"

#include <sys/socket.h>
#include <unistd.h>

#include <array>

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
  ~Ends() { ::close(ends_[1]); }
  Ends(const Ends&) = delete;
  Ends& operator=(const Ends&) = delete;

  int peer() const { return ends_[0]; }  // the link's own
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
