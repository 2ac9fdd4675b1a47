// What a peer sends, packet by packet: pages that are given back go in front of requests.

#include "sharing/outbox.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "native/memory.h"
#include "native/sharing.h"
#include "os/syscalls.h"

namespace pgalloc::outbox_test {
namespace {

using Io = Endpoint::Io;
using native_tests::fail_each_allocation;
using native_tests::FakeKernel;
using native_tests::pages;
using wire::Op;

struct Scene {
  Scene() {
    int pair[2];
    EXPECT_EQ(os::kernel().socketpair(pair), 0);
    socket = Endpoint(pair[0]);
    other = pair[1];
  }
  ~Scene() { ::close(other); }
  Scene(const Scene&) = delete;
  Scene& operator=(const Scene&) = delete;

  void give_back(uint64_t file) { outbox.add({file, pages(file, file + 1)}); }
  // The next packet that is sent: what it says of itself, and its bytes.
  wire::Header next() {
    EXPECT_EQ(outbox.send_next(socket), Io::kDone);
    bytes.resize(1 << 17);
    const ssize_t got = ::recv(other, bytes.data(), bytes.size(), MSG_DONTWAIT);
    EXPECT(got >= static_cast<ssize_t>(sizeof(wire::Header)));
    wire::Header header;
    std::memcpy(&header, bytes.data(), sizeof header);
    bytes = bytes.substr(sizeof header, static_cast<size_t>(got) - sizeof header);
    return header;
  }
  // The files of the pages that come first.
  std::vector<uint64_t> files(size_t count) const {
    std::vector<uint64_t> found;
    wire::Reader reader(bytes);
    for (wire::Pages each; found.size() < count && reader.read(each);) found.push_back(each.file);
    return found;
  }

  Outbox outbox;
  Endpoint socket;
  int other = -1;
  std::string bytes;
};

bool is(const wire::Header& header, Op op, uint32_t number, uint16_t released) {
  return header.version == wire::kVersion && header.kind == static_cast<uint8_t>(op) &&
         header.number == number && header.released == released;
}

TEST(a_request_is_a_packet) {
  Scene scene;
  EXPECT(scene.outbox.empty());
  scene.outbox.add(Op::kPing, 7, "payload");
  EXPECT(!scene.outbox.empty());
  EXPECT(is(scene.next(), Op::kPing, 7, 0));
  EXPECT_EQ(scene.bytes, "payload");
  EXPECT(scene.outbox.empty());
}

TEST(pages_go_along_with_the_next_request) {
  Scene scene;
  scene.give_back(1);
  scene.give_back(2);
  scene.outbox.add(Op::kPing, 7, "payload");
  scene.give_back(3);
  EXPECT(is(scene.next(), Op::kPing, 7, 2));
  EXPECT_EQ(scene.files(2), (std::vector<uint64_t>{1, 2}));
  EXPECT_EQ(scene.bytes.substr(2 * sizeof(wire::Pages)), "payload");
  EXPECT(is(scene.next(), Op::kRelease, 0, 0));
  EXPECT_EQ(scene.files(9), (std::vector<uint64_t>{3}));
  EXPECT(scene.outbox.empty());
}

TEST(a_packet_has_128_pages_at_most) {
  Scene scene;
  for (uint64_t file = 1; file <= 129; ++file) scene.give_back(file);
  scene.outbox.add(Op::kPing, 1, {});
  EXPECT(is(scene.next(), Op::kRelease, 0, 0));
  EXPECT_EQ(scene.files(999).size(), 128u);
  EXPECT(is(scene.next(), Op::kPing, 1, 1));
  EXPECT_EQ(scene.files(1), (std::vector<uint64_t>{129}));
}

TEST(what_does_not_fit_together_goes_one_after_the_other) {
  constexpr size_t kFits = wire::kPacketBytesMax - sizeof(wire::Header) - sizeof(wire::Pages);
  for (const size_t size : {kFits, kFits + 1}) {
    Scene scene;
    scene.give_back(1);
    scene.outbox.add(Op::kPing, 1, std::string(size, 'x'));
    if (size > kFits) EXPECT(is(scene.next(), Op::kRelease, 0, 0));
    EXPECT(is(scene.next(), Op::kPing, 1, size > kFits ? 0 : 1));
    EXPECT(scene.outbox.empty());
  }
}

TEST(nothing_comes_before_parts_and_greetings) {
  Scene scene;
  constexpr size_t kPart = wire::kPacketBytesMax - sizeof(wire::Header);
  scene.give_back(1);
  scene.outbox.add(Op::kCache, 5, std::string(kPart + 3, 'x'));
  EXPECT(is(scene.next(), Op::kRelease, 0, 0));
  EXPECT(is(scene.next(), Op::kPart, 0, 0));
  EXPECT_EQ(scene.bytes.size(), kPart);
  EXPECT(is(scene.next(), Op::kCache, 5, 0));
  EXPECT_EQ(scene.bytes, "xxx");
  scene.give_back(2);
  scene.outbox.add(Op::kHello, 6, "who");
  EXPECT(is(scene.next(), Op::kRelease, 0, 0));
  EXPECT(is(scene.next(), Op::kHello, 6, 0));
}

TEST(what_is_refused_is_sent_again) {
  Scene scene;
  scene.give_back(1);
  scene.outbox.add(Op::kPing, 1, {});
  {
    FakeKernel fake;
    fake.calls.sendmsg = [](int, const msghdr*, int) -> ssize_t { return errno = ENOBUFS, -1; };
    fake.begin();
    EXPECT_EQ(scene.outbox.send_next(scene.socket), Io::kRefused);
  }
  EXPECT(is(scene.next(), Op::kPing, 1, 1));
  scene.give_back(2);
  scene.outbox.clear();
  EXPECT(scene.outbox.empty());
}

TEST(without_memory_nothing_is_added) {
  Scene scene;
  const std::string payload(3 * wire::kPacketBytesMax, 'x');
  fail_each_allocation([&] { scene.outbox.add(Op::kPing, 1, payload); },
                       [&] { EXPECT(scene.outbox.empty()); });
  EXPECT(!scene.outbox.empty());
}

TEST(spares_are_used_where_there_is_no_memory) {
  Outbox outbox;
  const wire::Pages one{7, native_tests::pages(0, 1)};
  const auto add = [&] {
    native_tests::all_fail = true;
    bool done = true;
    try {
      outbox.add(one);
    } catch (const std::bad_alloc&) {
      done = false;
    }
    native_tests::all_fail = false;
    return done;
  };
  EXPECT(!add());
  EXPECT(outbox.empty());
  outbox.make_spares(3);
  outbox.add(one);  // needs none
  EXPECT(add());
  EXPECT(add());
  outbox.drop_spares(1);
  EXPECT(!add());
  outbox.drop_spares(1);  // there is none any more
  EXPECT(!outbox.empty());
}

}  // namespace
}  // namespace pgalloc::outbox_test
