// The broker without its thread: real sockets, and every system call and allocation made to fail.

#include "sharing/peers.h"

#include <errno.h>
#include <sys/un.h>

#include <set>

#include "native/memory.h"
#include "native/sharing.h"
#include "os/fault_plan.h"

namespace pgalloc::peers_test {
namespace {

using native_tests::Client;
using native_tests::Hub;
using native_tests::make_file;
using native_tests::Random;
using native_tests::take_pages;
using wire::Op;

// Connects by name, without a word.
std::unique_ptr<Client> connect(const std::string& name) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, name.data(), name.size());
  const int fd = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), size) != 0) {
    ::close(fd);
    return nullptr;
  }
  return std::make_unique<Client>(fd);
}

// No process holds them.
uint64_t pages_in_use(MemoryFile& file) {
  uint64_t bytes = 0;
  for (const auto& segment : file.segments())
    bytes += segment.use.refs > 0 ? segment.range.length() : 0;
  return bytes / page_size();
}

struct Scene {
  Scene() {
    scope.file = file;
    before = native_tests::descriptor_count();
  }
  ~Scene() {
    EXPECT(hub.until([&] { return hub.idle(); }));
    while (!hub.peers.offers().empty()) drop(hub.peers.offers().take_any());
    EXPECT_EQ(hub.peers.verify(), std::nullopt);
    EXPECT_EQ(pages_in_use(*file), 0u);
  }
  std::optional<wire::Pages> allocate(Client& client, uint64_t count = 1) {
    const auto answer = hub.ask(client, Op::kAllocate, file->id(), count * page_size(), uint8_t{1},
                                uint8_t{0}, uint32_t{0});
    wire::Pages pages;
    if (!answer || answer->first != 0 || !wire::Reader(answer->second).read_all(pages)) return {};
    return pages;
  }
  std::unique_ptr<Client> peer() { return hub.child(scope); }

  std::shared_ptr<MemoryFile> file = make_file();
  Scope scope;
  Hub hub;
  size_t before = 0;
};

TEST(a_peer_holds_what_it_allocated_until_it_hangs_up) {
  Scene scene;
  const auto client = scene.peer();
  const auto pages = scene.allocate(*client, 3);
  EXPECT_EQ(pages->range.length(), 3 * page_size());
  EXPECT_EQ(scene.hub.peers.verify(), std::nullopt);
  client->close();
  EXPECT(scene.hub.until([&] { return scene.hub.idle(); }));
}

TEST(malformed_packets_end_the_connection) {
  Scene scene;
  const std::string bad[] = {"x",
                             std::string(8, '\xff'),
                             wire::pack(200, 1),
                             wire::pack(static_cast<uint8_t>(Op::kAllocate), 1),
                             wire::pack(static_cast<uint8_t>(Op::kRelease), 1, uint8_t{1}),
                             wire::pack(static_cast<uint8_t>(Op::kHello), 1),
                             std::string(70000, '\1')};
  for (const std::string& packet : bad) {
    const auto client = scene.peer();
    const auto other = scene.peer();
    EXPECT(client->send(packet));
    EXPECT(scene.hub.until([&] {
      (void)client->receive();
      return client->ended;
    }));
    EXPECT(scene.hub.ask(*other, Op::kPing).has_value());
  }
}

TEST(answers_that_are_not_read_are_few_and_come_later) {
  Scene scene;
  const auto client = scene.peer();
  int sent = 0;
  for (int idle = 0; idle < 200; ++idle) {
    while (client->send(wire::pack(static_cast<uint8_t>(Op::kPing), 1))) ++sent, idle = 0;
    scene.hub.round();
  }
  const auto other = scene.peer();
  EXPECT(scene.hub.ask(*other, Op::kPing).has_value());
  int answers = 0;
  EXPECT(scene.hub.until([&] {
    while (client->receive()) ++answers;
    return answers == sent;
  }));
}

int sends_to_refuse = 0;
ssize_t sendmsg_with_too_many(int fd, const msghdr* message, int flags) {
  if (message->msg_controllen > 0 && sends_to_refuse-- > 0) return errno = ETOOMANYREFS, -1;
  return os::kernel().sendmsg(fd, message, flags);
}

TEST(a_descriptor_that_the_kernel_refuses_is_sent_later) {
  Scene scene;
  const auto client = scene.peer();
  native_tests::FakeKernel kernel;
  kernel.calls.sendmsg = sendmsg_with_too_many;
  sends_to_refuse = 5;
  kernel.begin();
  const auto answer = scene.hub.ask(*client, Op::kOpen, scene.file->id());
  EXPECT_EQ(answer->first, 0);
  EXPECT_EQ(client->descriptors, 1);
  EXPECT(sends_to_refuse < 0);
}

TEST(a_long_request_does_not_keep_others_waiting) {
  Scene scene;
  const auto greedy = scene.peer();
  const auto pages = scene.allocate(*greedy, kChunkSize / page_size() / 2);
  for (uint32_t number = 1; number <= 40; ++number) {
    EXPECT(greedy->send(wire::pack(static_cast<uint8_t>(Op::kDecommit), number, *pages)));
  }
  const auto other = scene.peer();
  for (int i = 0; i < 20; ++i) EXPECT(scene.hub.ask(*other, Op::kPing).has_value());
  EXPECT(!greedy->receive());  // and is not done yet
}

TEST(offers_pass_from_peer_to_peer_and_outlive_their_sender) {
  Scene scene;
  auto sender = scene.peer();
  const auto receiver = scene.peer();
  const auto pages = scene.allocate(*sender);
  const auto offered = scene.hub.ask(*sender, Op::kOffer, *pages);
  wire::Secret secret{};
  EXPECT(wire::Reader(offered->second).read_all(secret));
  sender->close();
  EXPECT(scene.hub.until([&] { return scene.hub.peers.channel_count() == 1; }));
  const auto claimed = scene.hub.ask(*receiver, Op::kClaim, secret);
  EXPECT_EQ(claimed->first, 0);
  EXPECT(scene.hub.ask(*receiver, Op::kClaim, secret)->first != 0);
}

// The offer of these pages; nothing if it was refused as `error`.
std::optional<wire::Secret> offer(Scene& scene, Client& client, const wire::Pages& pages,
                                  wire::Error error = wire::Error::kSharing) {
  const auto answer = scene.hub.ask(client, Op::kOffer, pages);
  wire::Secret secret{};
  if (answer && answer->first == 0 && EXPECT(wire::Reader(answer->second).read_all(secret))) {
    return secret;
  }
  EXPECT_EQ(answer->first, static_cast<uint8_t>(error));
  return std::nullopt;
}

TEST(l7_a_peer_whose_receivers_are_slow_is_told_so_and_loses_nothing) {
  Scene scene;
  scene.scope.limits.unclaimed = 3 * page_size();
  const auto sender = scene.peer();
  const auto receiver = scene.peer();
  const auto first = scene.allocate(*sender, 2);
  const auto second = scene.allocate(*sender, 2);
  const auto sent = offer(scene, *sender, *first);
  EXPECT(sent.has_value());
  EXPECT(!offer(scene, *sender, *second));
  EXPECT_EQ(scene.hub.peers.offers().size(), 1u);
  EXPECT(*scene.file->has_unique_ref(second->range));  // the lease it had, and no other
  EXPECT_EQ(scene.hub.ask(*sender, Op::kUnique, *second)->second, std::string(1, '\1'));
  EXPECT_EQ(scene.hub.ask(*receiver, Op::kClaim, *sent)->first, 0);
  EXPECT(offer(scene, *sender, *second).has_value());
  EXPECT_EQ(scene.hub.peers.verify(), std::nullopt);
}

TEST(l7_a_peer_leaves_half_of_a_served_file_to_others) {
  Scene scene;
  const uint64_t half = kChunkSize / page_size() / 2;  // of a file of make_file()
  const auto greedy = scene.peer();
  const auto other = scene.peer();
  EXPECT(!scene.allocate(*greedy, half + 1));
  const auto most = scene.allocate(*greedy, half - 1);
  EXPECT(most.has_value());
  const auto last = scene.allocate(*greedy);
  EXPECT(!scene.allocate(*greedy));
  // What it gets from others is not refused.
  const auto sent = offer(scene, *other, *scene.allocate(*other));
  EXPECT_EQ(scene.hub.ask(*greedy, Op::kClaim, *sent)->first, 0);
  greedy->send(wire::pack(static_cast<uint8_t>(Op::kRelease), 0, *last));
  EXPECT(!scene.allocate(*greedy));  // it holds what it got
  EXPECT(greedy->send(wire::pack(static_cast<uint8_t>(Op::kRelease), 0, *most)));
  EXPECT(scene.allocate(*greedy).has_value());
}

TEST(l7_a_process_of_the_program_may_allocate_what_there_is) {
  Scene scene;
  const uint64_t half = kChunkSize / page_size() / 2;
  EXPECT_EQ(PeerLimits{}.bytes, std::nullopt);
  scene.scope.limits.bytes = kChunkSize;  // as one that is served may, if it is said so
  const auto served = scene.peer();
  const auto pages = scene.allocate(*served, half + 1);
  EXPECT(pages.has_value());
  EXPECT(served->send(wire::pack(static_cast<uint8_t>(Op::kRelease), 0, *pages)));
  EXPECT_EQ(scene.hub.ask(*served, Op::kPing)->first, 0);
  EXPECT(scene.file->wait_for_reclaim(std::nullopt));
  const auto child = scene.hub.child();  // in no scope
  const FileRange given = take_pages(*scene.file, 1);
  EXPECT(scene.file->references().lease_anew(given).ok());
  const auto sent = scene.hub.peers.offers().add_or_drop(
      Offer::now(scene.file, given, 0, ::getpid(), ::getuid()));
  EXPECT_EQ(scene.hub.ask(*child, Op::kClaim, *sent)->first, 0);
  EXPECT(scene.allocate(*child, half + 1).has_value());
  EXPECT(scene.file->dec_ref(given).ok());
}

TEST(a_claim_brings_what_is_needed_to_map_the_file_unless_the_peer_has_it) {
  Scene scene;
  const auto sender = scene.peer();
  const auto receiver = scene.peer();
  const auto pages = scene.allocate(*sender, 2);
  for (int number = 1; number <= 3; ++number) {
    const auto sent = offer(scene, *sender, *pages);
    const auto claimed = scene.hub.ask(*receiver, Op::kClaim, *sent);
    EXPECT_EQ(claimed->first, 0);
    const bool first = number != 2;
    EXPECT_EQ(claimed->second.size() > sizeof(wire::Pages), first);
    EXPECT_EQ(receiver->descriptors, number == 1 ? 1 : number - 1);
    if (first) {
      const auto opened = scene.hub.ask(*sender, Op::kOpen, scene.file->id());
      EXPECT_EQ(claimed->second.substr(sizeof(wire::Pages)), opened->second);
    }
    if (number == 1) continue;
    // It has nothing of the file any more.
    for (int i = 0; i < 2; ++i) {  // the second time without effect, after the third claim
      receiver->send(wire::pack(static_cast<uint8_t>(Op::kRelease), 0, *pages));
    }
  }
}

int opened = -1;
int looks = 0;
int open_and_remember(const char* path, int flags, mode_t mode) {
  looks = 0;
  return opened = os::kernel().open(path, flags, mode);
}
// The program closes the descriptor that was opened last before it is sent: that is the second look.
int fstat_after_close(int fd, struct stat* status) {
  if (fd == opened && ++looks == 2) ::close(std::exchange(opened, -1));
  return os::kernel().fstat(fd, status);
}

TEST(a_claim_succeeds_where_the_files_descriptor_cannot_be_sent) {
  Scene scene;
  const auto sender = scene.peer();
  const auto receiver = scene.peer();
  const auto pages = scene.allocate(*sender);
  const auto sent = offer(scene, *sender, *pages);
  {
    native_tests::FakeKernel kernel;
    kernel.calls.open = open_and_remember;
    kernel.calls.fstat = fstat_after_close;
    kernel.begin();
    const auto claimed = scene.hub.ask(*receiver, Op::kClaim, *sent);
    EXPECT_EQ(claimed->first, 0);
    wire::Pages got;
    wire::Reader reader(claimed->second);
    EXPECT(reader.read(got) && got.range == pages->range);
  }
  EXPECT_EQ(opened, -1);  // it was closed
  EXPECT_EQ(receiver->descriptors, 0);
  EXPECT_EQ(scene.hub.ask(*receiver, Op::kOpen, scene.file->id())->first, 0);
  EXPECT_EQ(receiver->descriptors, 1);
}

// All that peers do, while something fails. What comes of it is checked by those who call it.
void live(Scene& scene, Client& client) {
  Hub& hub = scene.hub;
  if (!hub.ask(client, Op::kHello, uint32_t(::getpid()), wire::Secret{})) return;
  (void)hub.ask(client, Op::kOpen, scene.file->id());
  const auto pages = scene.allocate(client, 2);
  if (pages) {
    (void)hub.ask(client, Op::kUnpin, *pages);
    (void)hub.ask(client, Op::kPin, *pages);
    (void)hub.ask(client, Op::kUnique, *pages);
    (void)hub.ask(client, Op::kDecommit, *pages);
    const auto offered = hub.ask(client, Op::kOffer, *pages);
    if (offered && offered->first == 0) {
      wire::Secret secret{};
      EXPECT(wire::Reader(offered->second).read_all(secret));
      (void)hub.ask(client, Op::kClaim, secret);
    }
    (void)hub.ask(client, Op::kFork);
    client.send(wire::pack(static_cast<uint8_t>(Op::kRelease), 0, *pages));
  }
  (void)hub.ask(client, Op::kUsage, scene.file->id(), uint32_t{0});
  (void)hub.ask(client, Op::kServed);
}

// A life from the first call on. False if the peer was never let in.
void whole_life(Scene& scene) {
  Hub& hub = scene.hub;
  hub.peers.set_look_every(std::chrono::milliseconds(1));
  EXPECT(hub.until([&] { return hub.peers.started() || hub.peers.start().ok(); }));
  if (const auto client = connect(hub.peers.name())) live(scene, *client);
  const auto child = scene.peer();
  live(scene, *child);
}

// Afterwards another peer is answered, and nothing is left.
void check(Scene& scene) {
  Hub& hub = scene.hub;
  EXPECT(hub.until([&] { return hub.peers.started(); }));
  const auto other = connect(hub.peers.name());
  EXPECT(other != nullptr);
  if (other == nullptr) return;
  EXPECT(hub.ask(*other, Op::kHello, uint32_t(::getpid()), wire::Secret{}).has_value());
  other->close();
  EXPECT(hub.until([&] { return hub.idle(); }));
  EXPECT_EQ(hub.peers.verify(), std::nullopt);
}

TEST(l3_every_system_call_fails_once_and_for_a_while) {
  std::set<std::string_view> met;
  for (const std::string_view name : os::syscall_names()) {
    if (name == "mmap" || name == "munmap" || name == "close") continue;  // the tests' own, too
    for (const uint64_t times : {uint64_t{1}, uint64_t{20}}) {
      for (uint64_t number = 1; number < 2000; number += number < 40 ? 1 : number / 3) {
        native_tests::context = std::string(name) + " " + std::to_string(number);
        Scene scene;
        os::install_fault({name, ENOMEM, false, false, number, times});
        whole_life(scene);
        const uint64_t failures = os::fault_failures();
        os::remove_fault();
        check(scene);
        if (failures == 0) break;
        met.insert(name);
      }
    }
  }
  for (const auto name :
       {"getrandom", "socketpair", "listen_at", "accept", "set_nonblocking", "recvmsg", "sendmsg",
        "getsockopt", "epoll_create", "epoll_ctl", "fstat", "epoll_wait", "open"}) {
    if (!EXPECT(met.contains(name))) native_tests::failed(name, 0, "was never called");
  }
}

TEST(l3_every_allocation_fails_once) {
  int failed = 0;
  for (int64_t number = 0; number < 3000; number += number < 200 ? 1 : 7) {
    native_tests::context = "allocation " + std::to_string(number);
    Scene scene;
    EXPECT(scene.hub.peers.start().ok());
    const auto client = scene.peer();
    const auto other = scene.peer();
    // Only what the broker allocates: the test's own does not fail.
    scene.hub.fails_after = number;
    live(scene, *client);
    const bool all = scene.hub.fails_after >= 0;
    scene.hub.fails_after = -1;
    EXPECT(!client->ended);  // no connection is lost
    client->close();
    other->close();
    check(scene);
    if (all) break;
    ++failed;
  }
  EXPECT(failed > 50);
}

TEST(a_connection_that_was_closed_from_outside_ends_and_keeps_nothing_from_others) {
  Scene scene;
  EXPECT(scene.hub.peers.start().ok());
  scene.hub.peers.set_look_every(std::chrono::nanoseconds(0));
  Random random(1);
  for (int i = 0; i < 40; ++i) {
    const auto other = scene.peer();
    EXPECT(scene.hub.ask(*other, Op::kPing).has_value());
    const auto descriptors = scene.hub.peers.descriptors();
    ::close(descriptors[random.below(descriptors.size())]);
    EXPECT(scene.hub.ask(*other, Op::kPing).has_value());
    EXPECT(scene.hub.until([&] { return scene.hub.peers.started(); }));
  }
}

}  // namespace
}  // namespace pgalloc::peers_test
