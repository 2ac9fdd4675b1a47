// The broker without its thread: real sockets, and every system call and allocation made to fail.

#include "sharing/peers.h"

#include <errno.h>
#include <sys/resource.h>
#include <sys/un.h>
#include <sys/wait.h>

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
    native_tests::drop_all(hub.peers.offers());
    EXPECT_EQ(hub.peers.verify(), std::nullopt);
    EXPECT_EQ(pages_in_use(*file), 0u);
  }
  std::optional<wire::Pages> allocate(Client& client, uint64_t count = 1) {
    const auto answer = hub.ask(client, Op::kAllocate, file->id(), count * page_size(), uint8_t{1},
                                uint8_t{0}, uint32_t{0}, uint8_t{0});
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
  const auto sent = native_tests::add_or_drop(
      scene.hub.peers.offers(), Offer::now(scene.file, given, 0, ::getpid(), ::getuid()));
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
      const uint64_t step = times == 1 ? 1 : 7;
      for (uint64_t number = 1; number < 2000; number += number < 40 ? step : number / 3) {
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

// --- Who is let in -------------------------------------------------------------------------------

// A broker that listens, and strangers who connect.
struct Listening : Scene {
  Listening() { EXPECT(hub.peers.start().ok()); }
  ~Listening() {
    EXPECT(hub.until([&] { return hub.idle(); }));
  }
  std::unique_ptr<Client> stranger() const { return connect(hub.peers.name()); }
  bool ends(Client& client) {
    return hub.until([&] {
      (void)client.receive();
      return client.ended;
    });
  }
  std::optional<std::pair<uint8_t, std::string>> greet(Client& client,
                                                       const wire::Secret& secret = {}) {
    return hub.ask(client, Op::kHello, uint32_t{77}, secret);
  }
};

uid_t other_uid = 0;
pid_t other_pid = 0;
int getsockopt_of_another(int fd, int name, void* value, socklen_t* size) {
  const int result = os::kernel().getsockopt(fd, name, value, size);
  if (name != SO_PEERCRED || result != 0) return result;
  ucred peer{};
  std::memcpy(&peer, value, sizeof peer);
  peer.uid = other_uid;
  peer.pid = other_pid;
  std::memcpy(value, &peer, sizeof peer);
  return 0;
}
struct AnotherUser {
  explicit AnotherUser(uid_t uid, pid_t pid) {
    other_uid = uid;
    other_pid = pid;
    kernel.calls.getsockopt = getsockopt_of_another;
    kernel.begin();
  }
  native_tests::FakeKernel kernel;
};

TEST(another_user_has_to_show_the_secret) {
  Listening scene;
  const AnotherUser user(::geteuid() + 1, ::getpid());
  const wire::Secret secret = scene.hub.peers.secret();
  for (size_t byte = 0; byte < secret.size(); ++byte) {
    wire::Secret wrong = secret;
    wrong[byte] ^= 1u << (byte % 8);
    const auto client = scene.stranger();
    EXPECT(!scene.greet(*client, wrong).has_value());
    EXPECT(client->ended);
  }
  const auto client = scene.stranger();
  const auto answer = scene.greet(*client, secret);
  uint32_t owner = 0;
  EXPECT(wire::Reader(answer->second).read_all(owner));
  EXPECT_EQ(owner, static_cast<uint32_t>(::getpid()));
}

TEST(who_does_not_greet_first_is_sent_away) {
  Listening scene;
  for (const auto op : {Op::kPing, Op::kRelease, Op::kServed}) {
    const auto client = scene.stranger();
    EXPECT(!scene.hub.ask(*client, op).has_value());
    EXPECT(client->ended);
  }
  const auto client = scene.stranger();
  EXPECT(scene.greet(*client).has_value());  // of the same user: no secret is needed
  EXPECT(scene.hub.ask(*client, Op::kPing).has_value());
  EXPECT(scene.greet(*client).has_value());  // again
}

TEST(a_process_that_is_not_seen_from_here_is_called_as_it_says) {
  for (const pid_t pid : {0, 5}) {
    Listening scene;
    const AnotherUser user(::geteuid(), pid);
    const auto client = scene.stranger();
    EXPECT(scene.greet(*client).has_value());
    std::vector<pid_t> pids;
    scene.hub.peers.visit_sessions([&](const Session& session) {
      EXPECT_EQ(session.pid, pid == 0 ? kUnseen : 5);  // whose life is looked at
      pids.push_back(session.shown_pid);
    });
    EXPECT_EQ(pids, std::vector<pid_t>{pid == 0 ? 77 : 5});
  }
}

TEST(of_those_who_do_not_greet_the_64_newest_stay) {
  Listening scene;
  std::vector<std::unique_ptr<Client>> strangers;
  for (int i = 0; i < 64; ++i) strangers.push_back(scene.stranger());
  EXPECT(scene.hub.until([&] { return scene.hub.peers.channel_count() == 64; }));
  for (int i = 0; i < 5; ++i) scene.hub.round();
  EXPECT_EQ(scene.hub.peers.channel_count(), 64u);
  EXPECT(scene.greet(*strangers[1]).has_value());  // one does
  strangers.push_back(scene.stranger());
  for (int i = 0; i < 5; ++i) scene.hub.round();
  EXPECT_EQ(scene.hub.peers.channel_count(), 65u);
  strangers.push_back(scene.stranger());
  EXPECT(scene.ends(*strangers[0]));
  EXPECT_EQ(scene.hub.peers.channel_count(), 65u);
  EXPECT(scene.greet(*strangers[2]).has_value());
}

TEST(who_does_not_greet_in_time_is_sent_away) {
  Listening scene;
  const auto greeted = scene.stranger();
  EXPECT(scene.greet(*greeted).has_value());
  const auto before = std::chrono::steady_clock::now();
  const auto silent = scene.stranger();
  EXPECT(scene.hub.until([&] { return scene.hub.peers.channel_count() == 2; }));
  const auto after = std::chrono::steady_clock::now();
  scene.hub.peers.work(before + std::chrono::seconds(10));
  EXPECT_EQ(scene.hub.peers.channel_count(), 2u);
  scene.hub.peers.work(after + std::chrono::seconds(10) + std::chrono::nanoseconds(1));
  EXPECT_EQ(scene.hub.peers.channel_count(), 1u);
  EXPECT(scene.ends(*silent));
  EXPECT(scene.hub.ask(*greeted, Op::kPing).has_value());
}

// Both ends of all connections are in this process: new descriptors are made without the limit.
rlimit small{};
rlimit large{};
template <class Call>
int with_room(Call call) {
  ::setrlimit(RLIMIT_NOFILE, &large);
  const int result = call();
  const int error = errno;
  ::setrlimit(RLIMIT_NOFILE, &small);
  return errno = error, result;
}
int accept_with_room(int fd) {
  return with_room([&] { return os::kernel().accept(fd); });
}

TEST(half_of_the_descriptors_are_for_others) {
  Listening scene;
  EXPECT_EQ(::getrlimit(RLIMIT_NOFILE, &large), 0);
  AnotherUser user(::geteuid(), 1);
  user.kernel.calls.accept = accept_with_room;
  user.kernel.begin();
  const auto stranger = [&] {
    ++other_pid;  // of another process
    std::unique_ptr<Client> client;
    with_room([&] { return client = scene.stranger(), 0; });
    return client;
  };
  for (const size_t most : {size_t{50}, size_t{8}}) {  // eight in any case
    small = {most == 8 ? rlim_t{14} : 2 * most, large.rlim_max};
    std::vector<std::unique_ptr<Client>> peers;
    for (size_t i = 0; i < most; ++i) {
      peers.push_back(stranger());
      EXPECT(scene.greet(*peers.back()).has_value());
    }
    EXPECT_EQ(scene.hub.ask(*peers[0], Op::kFork)->first,
              static_cast<uint8_t>(wire::Error::kSharing));
    EXPECT(scene.ends(*stranger()));
    peers.pop_back();
    EXPECT(scene.hub.until([&] { return scene.hub.peers.channel_count() == most - 1; }));
    peers.push_back(stranger());
    EXPECT(scene.greet(*peers.back()).has_value());
    peers.clear();
    EXPECT(scene.hub.until([&] { return scene.hub.idle(); }));
  }
  ::setrlimit(RLIMIT_NOFILE, &large);
}

TEST(l7_a_process_has_a_quarter_of_the_connections_and_one_limit_for_all) {
  Listening scene;
  EXPECT_EQ(::getrlimit(RLIMIT_NOFILE, &large), 0);
  AnotherUser user(::geteuid(), 5);
  user.kernel.calls.accept = accept_with_room;
  user.kernel.begin();
  const auto stranger = [&] {
    std::unique_ptr<Client> client;
    with_room([&] { return client = scene.stranger(), 0; });
    return client;
  };
  small = {96, large.rlim_max};  // 48 connections
  std::vector<std::unique_ptr<Client>> peers;
  for (const auto& [pid, most] : {std::pair(5, size_t{12}), std::pair(0, size_t{24})}) {
    other_pid = pid;
    for (size_t i = 0; i < most; ++i) {
      peers.push_back(stranger());
      EXPECT(scene.greet(*peers.back()).has_value());
    }
    EXPECT(scene.ends(*stranger()));
  }
  other_pid = 6;
  EXPECT(scene.greet(*stranger()).has_value());
  // One that has gone makes room, unless the process holds something by it.
  other_pid = 5;
  peers.erase(peers.begin());
  EXPECT(scene.hub.until([&] { return scene.hub.peers.channel_count() < 37; }));
  peers.push_back(stranger());
  EXPECT(scene.greet(*peers.back()).has_value());
  ::setrlimit(RLIMIT_NOFILE, &large);
}

TEST(l7_what_a_process_has_sent_counts_when_it_connects_again) {
  Scene scene;
  scene.scope.limits.unclaimed = 2 * page_size();
  const std::string name =
      std::string(1, '\0') + "pgalloc-peers-test-" + std::to_string(::getpid());
  const auto number = scene.hub.peers.add_listener(
      Endpoint(os::kernel().listen_at(name.data(), name.size())), scene.scope);
  for (const bool first : {true, false}) {
    const auto client = connect(name);
    EXPECT(scene.hub.ask(*client, Op::kHello, uint32_t{1}, wire::Secret{}).has_value());
    const auto pages = scene.allocate(*client, 2);
    EXPECT(pages.has_value());
    EXPECT_EQ(offer(scene, *client, *pages).has_value(), first);
    client->close();
    EXPECT(scene.hub.until([&] { return scene.hub.idle(); }));
  }
  scene.hub.peers.remove_listener(*number);
}

TEST(l7_connections_of_a_process_share_its_limits) {
  Scene scene;
  scene.scope.limits.bytes = 4 * page_size();
  scene.scope.limits.unclaimed = 2 * page_size();
  scene.scope.limits.unpinned = 1;
  Session first(1, scene.hub.peers.offers(), scene.scope, 5, 0);
  Session other(9, scene.hub.peers.offers(), scene.scope, 6, 0);
  const auto ask = [&](Session& session, Op op, std::string_view payload) {
    Request request{.op = op, .number = 1, .payload = std::string(payload)};
    return *session.step(request);
  };
  const auto allocate = [&](Session& session, uint64_t count) {
    const std::string packet = wire::pack(0, 1, scene.file->id(), count * page_size(), uint8_t{1},
                                          uint8_t{0}, uint32_t{0}, uint8_t{0});
    const Answer answer = ask(session, Op::kAllocate, wire::parse(packet, nullptr)->payload);
    wire::Pages pages;
    if (answer.status.ok()) EXPECT(wire::Reader(answer.payload).read_all(pages));
    const bool ok = answer.status.ok();
    return std::pair(ok ? std::nullopt : std::optional(answer.status.code()), pages);
  };
  {
    std::vector<std::unique_ptr<Session>> more;
    for (uint64_t i = 0; i < 2; ++i) {
      more.push_back(std::make_unique<Session>(2 + i, scene.hub.peers.offers(), scene.scope, 5, 0));
      more.back()->count_with(first);
    }
    EXPECT_EQ(first.usage()->connections.load(), 3u);
    const auto pages = allocate(first, 2).second;
    const auto second = allocate(*more[0], 2).second;
    EXPECT_EQ(allocate(*more[1], 1).first, ErrorCode::kOutOfMemory);
    EXPECT_EQ(allocate(first, 1).first, ErrorCode::kOutOfMemory);
    EXPECT_EQ(allocate(other, 4).first, std::nullopt);
    const auto packed = [](const wire::Pages& its) {
      std::string payload;
      wire::append(payload, its);
      return payload;
    };
    EXPECT(ask(first, Op::kOffer, packed(pages)).status.ok());
    EXPECT(ask(first, Op::kOffer, packed(pages)).status.ok());  // the same pages
    EXPECT_EQ(ask(*more[0], Op::kOffer, packed(second)).status.code(), ErrorCode::kSharing);
    const wire::Pages one{second.file, {second.range.start, second.range.start + page_size()}};
    EXPECT_EQ(ask(*more[0], Op::kOffer, packed(one)).status.code(), ErrorCode::kSharing);
    EXPECT(ask(first, Op::kUnpin, packed(pages)).status.ok());
    EXPECT_EQ(ask(*more[0], Op::kUnpin, packed(second)).status.code(), ErrorCode::kSharing);
    EXPECT(ask(first, Op::kPin, packed(pages)).status.ok());
    EXPECT(ask(*more[0], Op::kUnpin, packed(second)).status.ok());
    EXPECT_EQ(ask(first, Op::kUnpin, packed(pages)).status.code(), ErrorCode::kSharing);
    EXPECT_EQ(first.usage()->bytes_of(pages.file), 4 * page_size());
  }
  EXPECT_EQ(first.usage()->unpinned, 0u);
  EXPECT_EQ(first.usage()->connections.load(), 1u);
  EXPECT_EQ(allocate(first, 2).first, std::nullopt);  // what the others had is free
  EXPECT(first.end_some(SIZE_MAX));
  EXPECT(other.end_some(SIZE_MAX));
}

TEST(a_listener_lets_in_until_it_is_removed) {
  Scene scene;
  const std::string name =
      std::string(1, '\0') + "pgalloc-peers-test-" + std::to_string(::getpid());
  const auto number = scene.hub.peers.add_listener(
      Endpoint(os::kernel().listen_at(name.data(), name.size())), scene.scope);
  EXPECT(number.ok());
  EXPECT_EQ(scene.hub.peers.listener_count(), 1u);
  const auto client = connect(name);
  EXPECT(scene.hub.ask(*client, Op::kHello, uint32_t{1}, wire::Secret{}).has_value());
  EXPECT_EQ(scene.hub.ask(*client, Op::kServed)->first, 0);  // with its scope
  scene.hub.peers.remove_listener(*number + 1);
  EXPECT_EQ(scene.hub.peers.listener_count(), 1u);
  scene.hub.peers.remove_listener(*number);
  EXPECT_EQ(scene.hub.peers.listener_count(), 0u);
  EXPECT(connect(name) == nullptr);
  EXPECT_EQ(scene.hub.peers.take_let_go().listeners.size(), 1u);
  EXPECT(scene.hub.ask(*client, Op::kPing).has_value());  // it stays
  EXPECT_EQ(scene.hub.peers.add_listener(Endpoint(), {}).status().error_number(), EBADF);
}

int accepts = 0;
int accept_refused(int) { return ++accepts, errno = EMFILE, -1; }

TEST(without_a_descriptor_no_one_is_let_in_for_a_moment) {
  Listening scene;
  scene.hub.round();
  const auto client = scene.stranger();
  scene.hub.peers.set_look_every(std::chrono::hours(1));
  const auto now = std::chrono::steady_clock::now();
  std::array<epoll_event, 8> events;
  // How many events there are; and how long is to be waited for them.
  const auto prepare = [&](SteadyTime then, int* timeout_ms) {
    const Peers::Wait wait = scene.hub.peers.prepare(then);
    *timeout_ms = wait.timeout_ms;
    return os::kernel().epoll_wait(wait.epoll, events.data(), 8, 0);
  };
  native_tests::FakeKernel kernel;
  kernel.calls.accept = accept_refused;
  kernel.begin();
  int timeout_ms = 0;
  EXPECT_EQ(prepare(now, &timeout_ms), 1);
  EXPECT_EQ(timeout_ms, 3600 * 1000);
  scene.hub.peers.handle(events[0], now);
  EXPECT_EQ(accepts, 1);
  EXPECT_EQ(prepare(now, &timeout_ms), 0);
  EXPECT_EQ(timeout_ms, 100);
  EXPECT_EQ(prepare(now + std::chrono::milliseconds(99), &timeout_ms), 0);
  EXPECT_EQ(timeout_ms, 1);
  EXPECT_EQ(prepare(now + std::chrono::milliseconds(100), &timeout_ms), 1);
  os::use(os::kernel());
  EXPECT(scene.greet(*client).has_value());
}

TEST(what_a_peer_holds_it_holds_until_its_process_cannot_see_it) {
  Scene scene;
  const FileRange first = native_tests::take_pages(*scene.file, 1);
  EXPECT(scene.file->map(first).ok());  // this process sees all of the file
  EXPECT(scene.file->dec_ref(first).ok());
  const std::string name = std::string(1, '\0') + "pgalloc-end-" + std::to_string(::getpid());
  EXPECT(scene.hub.peers
             .add_listener(Endpoint(os::kernel().listen_at(name.data(), name.size())), scene.scope)
             .ok());
  const pid_t dead = ::fork();
  if (dead == 0) ::_exit(0);
  ::waitpid(dead, nullptr, 0);
  // Where the peer is this process itself, its connection is all there is (own_peers_end).
  for (const pid_t pid : {::getpid(), dead}) {
    const AnotherUser user(::geteuid(), pid);
    const auto client = connect(name);
    EXPECT(scene.hub.ask(*client, Op::kHello, uint32_t{1}, wire::Secret{}).has_value());
    EXPECT(scene.allocate(*client, 2).has_value());
    client->close();
    EXPECT(scene.hub.until([&] { return scene.hub.idle(); }));
    EXPECT_EQ(pages_in_use(*scene.file), 0u);
  }
  // Else it is looked at like any other.
  scene.hub.peers.own_peers_end = false;
  const AnotherUser user(::geteuid(), ::getpid());
  const auto client = connect(name);
  EXPECT(scene.hub.ask(*client, Op::kHello, uint32_t{1}, wire::Secret{}).has_value());
  EXPECT(scene.allocate(*client, 2).has_value());
  client->close();
  EXPECT(scene.hub.until([&] { return scene.hub.peers.channel_count() == 0; }));
  for (int i = 0; i < 3; ++i) {
    const auto now = *scene.hub.peers.departed().next_time();
    auto look = scene.hub.peers.departed().next_look(now);
    look->take();
    EXPECT(look->sessions.front().sees);
    scene.hub.peers.departed().looked(*look, now);
  }
  EXPECT_EQ(pages_in_use(*scene.file), 2u);
  EXPECT_EQ(scene.hub.peers.departed().size(), 1u);
  const auto now = *scene.hub.peers.departed().next_time();
  auto look = scene.hub.peers.departed().next_look(now);
  look->sessions.front().sees = false;
  scene.hub.peers.departed().looked(*look, now);
}

// --- Children, time and turns --------------------------------------------------------------------

// A child that lives: its end of the connection is kept. The status of the answer.
uint8_t fork(Scene& scene, Client& client, std::vector<std::unique_ptr<Client>>* children) {
  EXPECT(client.send(wire::pack(static_cast<uint8_t>(Op::kFork), 1)));
  int child = -1;
  uint8_t status = 0;
  EXPECT(scene.hub.until([&] {
    char packet[200];
    iovec part{packet, sizeof packet};
    alignas(cmsghdr) char room[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = room;
    message.msg_controllen = sizeof room;
    const ssize_t got = ::recvmsg(client.fd(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got <= 0) return false;
    status = static_cast<uint8_t>(packet[1]);
    const cmsghdr* const rights = CMSG_FIRSTHDR(&message);
    if (rights != nullptr) std::memcpy(&child, CMSG_DATA(rights), sizeof child);
    return true;
  }));
  if (child >= 0) children->push_back(std::make_unique<Client>(child));
  return status;
}

TEST(l7_a_process_has_so_many_children_at_most) {
  Scene scene;
  scene.scope.limits.children = 2;
  auto client = scene.peer();
  auto other = scene.peer();
  Session* first = nullptr;
  scene.hub.peers.visit_sessions([&](Session& each) {
    if (first != nullptr) each.count_with(*first);  // of the same process
    first = &each;
  });
  const auto pages = scene.allocate(*client, 2);
  EXPECT_EQ(scene.hub.ask(*client, Op::kFork)->first, 0);
  EXPECT(scene.hub.until([&] { return scene.hub.peers.channel_count() == 2; }));  // it has ended
  EXPECT_EQ(client->descriptors, 1);
  std::vector<std::unique_ptr<Client>> children;
  EXPECT_EQ(fork(scene, *client, &children), 0);
  EXPECT_EQ(fork(scene, *client, &children), 0);
  EXPECT_EQ(children.size(), 2u);
  EXPECT_EQ(fork(scene, *client, &children), static_cast<uint8_t>(wire::Error::kSharing));
  EXPECT_EQ(scene.hub.ask(*children[0], Op::kUnique, *pages)->second, std::string(1, '\0'));
  children.pop_back();
  EXPECT(scene.hub.until([&] { return scene.hub.peers.channel_count() == 3; }));
  std::swap(client, other);
  EXPECT_EQ(fork(scene, *client, &children), 0);
  EXPECT_EQ(fork(scene, *client, &children), static_cast<uint8_t>(wire::Error::kSharing));
  // They are its process's, whichever connection they came by.
  other->close();
  EXPECT(scene.hub.until([&] { return scene.hub.peers.channel_count() == 3; }));
  EXPECT_EQ(fork(scene, *client, &children), static_cast<uint8_t>(wire::Error::kSharing));
}

TEST(l7_children_of_a_peer_leave_connections_to_others) {
  Scene scene;
  EXPECT_EQ(::getrlimit(RLIMIT_NOFILE, &large), 0);
  small = {192, large.rlim_max};  // 96 connections; a quarter is 24
  const auto client = scene.peer();
  EXPECT(scene.allocate(*client).has_value());
  std::vector<std::unique_ptr<Client>> children;
  ::setrlimit(RLIMIT_NOFILE, &small);
  while (children.size() < 50 && fork(scene, *client, &children) == 0) continue;
  ::setrlimit(RLIMIT_NOFILE, &large);
  EXPECT_EQ(children.size(), 23u);
}

// So many pages, none next to another. Their file.
uint64_t lease_ranges(Scene& scene, Client& client, uint64_t count) {
  const auto pages = scene.allocate(client, 2 * count);
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t start = pages->range.start + 2 * i * page_size();
    const auto released =
        scene.hub.ask(client, Op::kRelease, wire::Pages{pages->file, {start, start + page_size()}});
    if (!EXPECT_EQ(released->first, 0)) break;
  }
  return pages->file;
}

TEST(a_child_gets_all_leases_though_they_are_many) {
  Scene scene;
  const auto client = scene.peer();
  constexpr uint64_t kRanges = 1500;
  const uint64_t file = lease_ranges(scene, *client, kRanges);
  // Its child is kept by a descriptor that is not received yet.
  EXPECT(client->send(wire::pack(static_cast<uint8_t>(Op::kFork), 1)));
  EXPECT(scene.hub.until([&] { return scene.hub.peers.channel_count() == 2; }));
  std::vector<uint64_t> bytes;
  scene.hub.peers.visit_sessions(
      [&](const Session& session) { bytes.push_back(session.bytes_of(file)); });
  EXPECT_EQ(bytes, std::vector<uint64_t>(2, kRanges * page_size()));
}

int calls_until_failure = -1;
int fstat_failing(int fd, struct stat* out) {
  return calls_until_failure-- == 0 ? (errno = ENOMEM, -1) : os::kernel().fstat(fd, out);
}
int socketpair_refused(int*) { return errno = ENFILE, -1; }
int pass_credentials_refused(int) { return errno = ENOMEM, -1; }

TEST(a_child_has_a_connection_or_its_parent_is_told_that_it_has_none) {
  Scene scene;
  scene.hub.peers.set_look_every(std::chrono::hours(1));
  const auto client = scene.peer();
  EXPECT(scene.hub.ask(*client, Op::kPing).has_value());
  int failed = 0;
  for (int number = 0; number < 6; ++number) {
    native_tests::FakeKernel kernel;
    if (number < 4) kernel.calls.fstat = fstat_failing;
    if (number == 4) kernel.calls.socketpair = socketpair_refused;
    if (number == 5) kernel.calls.pass_credentials = pass_credentials_refused;
    calls_until_failure = number;
    client->descriptors = 0;
    kernel.begin();
    const auto answer = scene.hub.ask(*client, Op::kFork);
    os::use(os::kernel());
    EXPECT_EQ(client->descriptors, answer->first == 0 ? 1 : 0);
    EXPECT(scene.hub.until([&] { return scene.hub.peers.channel_count() == 1; }));
    if (answer->first == 0) continue;
    ++failed;
    EXPECT_EQ(answer->first, static_cast<uint8_t>(wire::Error::kSystem));
  }
  EXPECT(failed >= 4);  // either end, and what makes them
}

int end_of_owner = -1;
int socketpair_seen(int* pair) {
  const int result = os::kernel().socketpair(pair);
  end_of_owner = pair[0];
  return result;
}

TEST(l3_a_child_that_has_not_spoken_keeps_its_leases_if_its_connection_is_lost) {
  for (const bool lost : {false, true}) {
    const auto file = make_file();
    Scope scope;
    scope.file = file;
    Hub hub;
    hub.peers.set_look_every(std::chrono::nanoseconds(0));
    const auto parent = hub.child(scope);
    EXPECT(hub.ask(*parent, Op::kAllocate, file->id(), page_size(), uint8_t{1}, uint8_t{0},
                   uint32_t{0}, uint8_t{0}));
    {
      native_tests::FakeKernel kernel;
      kernel.calls.socketpair = socketpair_seen;
      kernel.begin();
      // The child has its end: it is in the answer, which is not received yet.
      EXPECT(parent->send(wire::pack(static_cast<uint8_t>(Op::kFork), 1)));
      EXPECT(hub.until([&] { return hub.peers.channel_count() == 2; }));
    }
    if (lost) {
      ::close(end_of_owner);
      EXPECT(hub.until([&] { return hub.peers.channel_count() == 1; }));
    }
    parent->close();
    for (int i = 0; i < 50; ++i) hub.round();
    EXPECT_EQ(hub.peers.channel_count(), 0u);
    EXPECT_EQ(hub.peers.departed().size(), lost ? 1u : 0u);
    EXPECT_EQ(pages_in_use(*file), lost ? 1u : 0u);
  }
}

TEST(a_fork_without_memory_does_not_keep_the_next_one_waiting) {
  int failed = 0;
  for (int64_t number = 0;; ++number) {
    Scene scene;
    const auto client = scene.peer();
    EXPECT(scene.allocate(*client, 2).has_value());
    scene.hub.round();
    scene.hub.fails_after = number;
    const auto first = scene.hub.ask(*client, Op::kFork);
    const bool all = scene.hub.fails_after >= 0;
    scene.hub.fails_after = -1;
    if (first->first != 0) ++failed;
    EXPECT_EQ(scene.hub.ask(*client, Op::kFork)->first, 0);
    if (all) break;
  }
  EXPECT(failed > 5);
}

TEST(a_lease_that_cannot_be_copied_costs_the_child) {
  Scene scene;
  // As from an image in which one page is held as often as can be, but once.
  const FileRange full = native_tests::pages(0, 1);
  const image::Usage usage{full, UINT32_MAX - 1};
  EXPECT(scene.file->restore(page_size(), {usage}).ok());
  EXPECT(scene.file->references().lease_anew(full).ok());
  const auto secret = scene.hub.peers.offers().add(Offer::now(scene.file, full, 0, 1, 1));
  const auto client = scene.peer();
  EXPECT_EQ(scene.hub.ask(*client, Op::kClaim, *secret)->first, 0);
  EXPECT_EQ(scene.hub.ask(*client, Op::kFork)->first, static_cast<uint8_t>(wire::Error::kRefCount));
  EXPECT_EQ(client->descriptors, 1);  // the file's, which came with the claim
  EXPECT_EQ(scene.hub.peers.channel_count(), 1u);
  EXPECT(scene.file->references().drop_unadopted().ok());
  EXPECT_EQ(scene.hub.ask(*client, Op::kFork)->first, 0);
}

TEST(a_peer_that_goes_while_it_forks_leaves_nothing) {
  Scene scene;
  const auto client = scene.peer();
  (void)lease_ranges(scene, *client, 1500);
  for (const uint32_t number : {1, 2}) {
    EXPECT(client->send(wire::pack(static_cast<uint8_t>(Op::kFork), number)));
    scene.hub.round();
  }
  EXPECT(!client->receive());  // it is under way
  client->close();
}

TEST(offers_are_dropped_when_their_time_is_over) {
  Scene scene;
  auto sender = scene.peer();
  const auto pages = scene.allocate(*sender, 4);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(scene.hub.ask(*sender, Op::kOffer, *pages)->first, 0);
  sender->close();
  EXPECT(scene.hub.until([&] { return scene.hub.idle(); }));
  EXPECT_EQ(scene.hub.peers.offers().size(), 3u);
  const SteadyTime deadline = *scene.hub.peers.offers().next_deadline();
  scene.hub.peers.work(deadline - std::chrono::nanoseconds(1));
  EXPECT_EQ(scene.hub.peers.offers().size(), 3u);
  scene.hub.peers.work(deadline);
  EXPECT_EQ(scene.hub.peers.offers().size(), 0u);
  EXPECT_EQ(pages_in_use(*scene.file), 0u);
  EXPECT_EQ(scene.hub.peers.take_let_go().offers.size(), 3u);
}

TEST(the_broker_waits_as_long_as_nothing_is_due) {
  Scene scene;
  scene.hub.peers.set_look_every(std::chrono::hours(1));
  const auto client = scene.peer();
  EXPECT(scene.hub.ask(*client, Op::kPing).has_value());
  const auto timeout = [&](SteadyTime now) { return scene.hub.peers.prepare(now).timeout_ms; };
  const auto now = std::chrono::steady_clock::now();
  constexpr int kHour_ms = 3600 * 1000;
  (void)timeout(now +
                std::chrono::hours(2));  // it looks at descriptors then, and again an hour later
  EXPECT_EQ(timeout(now + std::chrono::hours(2)), kHour_ms);
  EXPECT_EQ(timeout(now + std::chrono::hours(2) + std::chrono::milliseconds(1)), kHour_ms - 1);
  // A request that has come is worked on at once.
  EXPECT(client->send(wire::pack(static_cast<uint8_t>(Op::kPing), 1)));
  const Peers::Wait wait = scene.hub.peers.prepare(now + std::chrono::hours(2));
  std::array<epoll_event, 8> events;
  const int count = os::kernel().epoll_wait(wait.epoll, events.data(), 8, 0);
  EXPECT_EQ(count, 1);
  scene.hub.peers.handle(events[0], now);
  EXPECT_EQ(timeout(now + std::chrono::hours(2)), 0);
  scene.hub.peers.work(now);
  EXPECT_EQ(timeout(now + std::chrono::hours(2)), kHour_ms);
  EXPECT(client->receive().has_value());
}

TEST(processes_of_other_namespaces_come_through_a_door) {
  Listening scene;
  const std::string path = scene.hub.peers.path();
  EXPECT(!path.empty());
  const auto client = connect(path);
  EXPECT(client != nullptr && scene.greet(*client).has_value());
  EXPECT_EQ(scene.hub.peers.listener_count(), 2u);
  EXPECT_EQ(scene.hub.peers.descriptors().size(), 6u);
  EXPECT(scene.hub.peers.start().ok());  // what has succeeded is not done again
  EXPECT_EQ(scene.hub.peers.path(), path);
  EXPECT_EQ(scene.hub.peers.listener_count(), 2u);
  ::close(scene.hub.peers.descriptors()[5]);  // what leads to it
  scene.hub.peers.set_look_every(std::chrono::nanoseconds(0));
  scene.hub.round();
  EXPECT_EQ(scene.hub.peers.listener_count(), 2u);
  const auto other = connect(scene.hub.peers.path());
  EXPECT(other != nullptr && scene.greet(*other).has_value());
}

int listen_at_taken(const char* name, size_t size) {
  return name[0] == '\0' ? (errno = EADDRINUSE, -1) : os::kernel().listen_at(name, size);
}

TEST(a_name_that_is_taken_is_not_tried_again) {
  Scene scene;
  {
    native_tests::FakeKernel kernel;
    kernel.calls.listen_at = listen_at_taken;
    kernel.begin();
    EXPECT_EQ(scene.hub.peers.start().error_number(), EADDRINUSE);
    EXPECT(scene.hub.peers.name().empty());
    EXPECT(!scene.hub.peers.started());
  }
  const wire::Secret secret = scene.hub.peers.secret();
  EXPECT(secret != wire::Secret{});
  ::close(0);
  EXPECT(scene.hub.peers.start().ok());
  EXPECT(scene.hub.peers.started());
  EXPECT(scene.hub.peers.descriptors()[3] > 2);  // the socket's
  EXPECT_EQ(scene.hub.peers.secret(), secret);
  EXPECT_EQ(scene.hub.peers.name().substr(1, 8), "pgalloc-");
}

}  // namespace
}  // namespace pgalloc::peers_test
