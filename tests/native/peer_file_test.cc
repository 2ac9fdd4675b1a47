// What a peer has of a file.

#include "sharing/peer_file.h"

#include <sys/socket.h>
#include <unistd.h>

#include "native/sharing.h"

namespace pgalloc::peer_file_test {
namespace {

using native_tests::make_file;
using native_tests::take_pages;

TEST(l8_pages_that_were_handed_over_are_held_although_their_owner_has_ended_since) {
  int pair[2];
  EXPECT_EQ(os::kernel().socketpair(pair), 0);
  const auto link = std::move(*OwnerLink::create(pair[0]));
  const auto theirs = make_file();
  const FileRange range = take_pages(*theirs, 1);
  const auto peer = std::move(*PeerFile::create(theirs->fd(), {1, kChunkSize, false}, link));
  ::close(pair[1]);
  link->break_off();
  EXPECT(peer->adopt(range).ok());
  EXPECT(peer->holds(range));
  EXPECT(peer->map(range).ok());
  EXPECT_EQ(peer->inc_ref(range, 0).code(), ErrorCode::kOwnerGone);
  EXPECT(peer->dec_ref(range).ok());
  EXPECT(!peer->close());
  EXPECT_EQ(peer->adopt(range).code(), ErrorCode::kClosed);
  EXPECT(theirs->dec_ref(range).ok());
}

}  // namespace
}  // namespace pgalloc::peer_file_test
