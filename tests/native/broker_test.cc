// The broker's thread, and forks that know nothing of it. Each test is a process: a broker stays.

#include "sharing/broker.h"

#include <errno.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <atomic>
#include <thread>

#include "native/sharing.h"
#include "sharing/forks.h"

namespace pgalloc::broker_test {
namespace {

using native_tests::Client;
using native_tests::FakeKernel;

// Runs in a process of its own. Whether it ended well: `failures` of the child are its status.
bool in_child(void (*run)()) {
  Forks::install();
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::alarm(60);
    native_tests::failures = 0;
    run();
    ::_exit(native_tests::failures == 0 ? 0 : 1);
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// A peer that was let in; nullptr if it was not.
std::unique_ptr<Client> connected() {
  const auto address = Broker::instance().address();
  if (!EXPECT(address.ok())) return nullptr;
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  std::memcpy(name.sun_path, address->name.data(), address->name.size());
  const int fd = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  auto client = std::make_unique<Client>(fd);
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + address->name.size());
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&name), size) != 0) return nullptr;
  client->send(wire::pack(static_cast<uint8_t>(wire::Op::kHello), 1, uint32_t{1}, wire::Secret{}));
  char answer[100];
  if (::recv(fd, answer, sizeof answer, 0) <= 0) return nullptr;  // waits
  return client;
}

bool is_answered() { return connected() != nullptr; }

std::atomic<bool> reached{false};
std::atomic<bool> goes_on{false};
int slow_listen_at(const char* name, size_t size) {
  reached = true;
  while (!goes_on) std::this_thread::yield();
  return os::kernel().listen_at(name, size);
}

TEST(a_fork_waits_until_another_thread_has_started_the_broker) {
  EXPECT(in_child([] {
    FakeKernel kernel;
    kernel.calls.listen_at = slow_listen_at;
    kernel.begin();
    std::thread starts([] { EXPECT(Broker::instance().address().ok()); });
    while (!reached) std::this_thread::yield();
    std::thread lets_go([] {
      // time: the load: the fork has begun by then, or the test shows nothing
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      goes_on = true;
    });
    EXPECT(in_child([] {
      const auto figures = Broker::instance().figures();
      EXPECT_EQ(figures.listeners, 0u);  // the parent's
      EXPECT(is_answered());
    }));
    starts.join();
    lets_go.join();
    EXPECT(is_answered());
  }));
}

#if PGALLOC_CHILDREN_ALLOCATE
TEST(forks_at_any_moment_leave_parent_and_child_with_a_broker) {
  EXPECT(in_child([] {
    EXPECT(is_answered());
    std::atomic<bool> stop{false};
    std::thread asks([&] {
      while (!stop) EXPECT(is_answered());
    });
    for (int i = 0; i < 50; ++i) {
      EXPECT(in_child([] { EXPECT(is_answered()); }));
    }
    stop = true;
    asks.join();
    EXPECT_EQ(Broker::instance().verify(), std::nullopt);
  }));
}
#endif

// --- Waiting until what was sent is claimed ------------------------------------------------------

constexpr auto kAnHour = std::chrono::hours(1);

bool claimed_by_now() { return Broker::instance().await_claims(std::chrono::steady_clock::now()); }
bool claimed_some_time() {
  return Broker::instance().await_claims(std::chrono::steady_clock::now() + kAnHour);
}

struct Sent {
  Sent() : secret(*Broker::instance().offer(file, range)) {}
  ~Sent() { EXPECT(file->closed() || file->dec_ref(range).ok()); }
  std::shared_ptr<MemoryFile> file = native_tests::make_file();
  FileRange range = native_tests::take_pages(*file, 1);
  wire::Secret secret;
};

TEST(l8_where_nothing_was_sent_nothing_is_awaited) {
  EXPECT(in_child([] {
    EXPECT(claimed_by_now());
    EXPECT(claimed_some_time());
    EXPECT(is_answered());
    EXPECT(claimed_some_time());
  }));
}

TEST(l8_what_was_sent_is_awaited_until_it_is_claimed_dropped_or_closed) {
  EXPECT(in_child([] {
    Broker& broker = Broker::instance();
    for (int way = 0; way < 3; ++way) {
      const Sent sent;
      EXPECT(!claimed_by_now());
      std::atomic<bool> done{false};
      std::thread awaits([&] {
        EXPECT(claimed_some_time());
        done = true;
      });
      EXPECT(!claimed_by_now());
      EXPECT(!done);
      if (way == 0) EXPECT(broker.claim(sent.secret).ok());
      if (way == 1) EXPECT_EQ(broker.drop_unclaimed(sent.file->id(), {}), page_size());
      if (way == 2) {
        EXPECT(sent.file->close().ok());
        EXPECT(claimed_by_now());
        EXPECT(is_answered());  // a round
      }
      awaits.join();
    }
  }));
}

TEST(l8_a_claim_by_a_peer_ends_the_wait) {
  EXPECT(in_child([] {
    const Sent sent;
    std::thread awaits([] { EXPECT(claimed_some_time()); });
    const auto client = connected();
    if (EXPECT(client != nullptr)) {
      client->send(wire::pack(static_cast<uint8_t>(wire::Op::kClaim), 2, sent.secret));
      awaits.join();
      EXPECT_EQ(client->receive()->first, 0);  // it was sent before the wait was over
    }
  }));
}

#if PGALLOC_CHILDREN_ALLOCATE
TEST(l8_a_child_that_is_forked_during_the_wait_has_none_of_it) {
  EXPECT(in_child([] {
    const Sent sent;
    std::thread awaits([] { EXPECT(claimed_some_time()); });
    for (int i = 0; i < 20; ++i) {
      EXPECT(in_child([] {
        EXPECT(claimed_some_time());
        const Sent of_child;
        std::thread child_awaits([] { EXPECT(claimed_some_time()); });
        EXPECT(Broker::instance().claim(of_child.secret).ok());
        child_awaits.join();
      }));
    }
    EXPECT(Broker::instance().claim(sent.secret).ok());
    awaits.join();
  }));
}
#endif

TEST(those_who_park_it_wait_until_the_thread_is_gone) {
  EXPECT(in_child([] {
    EXPECT(is_answered());
    std::vector<std::thread> parkers;
    std::atomic<int> alive{0};
    for (int i = 0; i < 4; ++i) {
      parkers.emplace_back([&] {
        Broker::instance().park();
        if (native_tests::threads_of_process() > 5) ++alive;  // the first, and four parkers
      });
    }
    for (std::thread& parker : parkers) parker.join();
    EXPECT_EQ(alive, 0);
    for (int i = 0; i < 4; ++i) Broker::instance().resume();
    EXPECT(is_answered());
  }));
}

int slow_maps(const char* path, int flags, mode_t mode) {
  if (std::strstr(path, "/maps") != nullptr) {
    reached = true;
    while (!goes_on) std::this_thread::yield();
  }
  return os::kernel().open(path, flags, mode);
}

TEST(peers_are_answered_while_it_is_looked_at_a_process) {
  EXPECT(in_child([] {
    FakeKernel kernel;
    kernel.calls.open = slow_maps;
    kernel.begin();
    Broker& broker = Broker::instance();
    const Sent sent;
    broker.park();
    const size_t others = native_tests::threads_of_process();
    broker.resume();
    {
      const auto client = connected();
      client->send(wire::pack(static_cast<uint8_t>(wire::Op::kClaim), 2, sent.secret));
      char answer[100];
      EXPECT(::recv(client->fd(), answer, sizeof answer, 0) > 0);
    }
    while (!reached) std::this_thread::yield();
    for (int i = 0; i < 10; ++i) EXPECT(is_answered());
    EXPECT(broker.figures().looking);
    EXPECT_EQ(broker.figures().sessions_without_channel, 1u);
    EXPECT(in_child([] {  // the look is its parent's
      EXPECT(!Broker::instance().figures().looking);
      EXPECT(is_answered());
    }));
    goes_on = true;
    while (broker.figures().sessions_without_channel > 0) std::this_thread::yield();
    while (!*sent.file->has_unique_ref(sent.range))
      std::this_thread::yield();  // given back by then, or soon
    broker.park();
    EXPECT_EQ(native_tests::threads_of_process(), others);
    broker.resume();
    EXPECT(is_answered());
  }));
}

TEST(who_parks_it_waits_until_a_look_is_over) {
  EXPECT(in_child([] {
    FakeKernel kernel;
    kernel.calls.open = slow_maps;
    kernel.begin();
    Broker& broker = Broker::instance();
    const Sent sent;
    broker.park();
    const size_t others = native_tests::threads_of_process();
    broker.resume();
    {
      const auto client = connected();
      client->send(wire::pack(static_cast<uint8_t>(wire::Op::kClaim), 2, sent.secret));
      char answer[100];
      EXPECT(::recv(client->fd(), answer, sizeof answer, 0) > 0);
    }
    while (!reached) std::this_thread::yield();
    std::thread lets_go([] {
      // time: the load: it is being parked by then, or the test shows less
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      goes_on = true;
    });
    broker.park();
    EXPECT(goes_on);
    lets_go.join();
    EXPECT_EQ(native_tests::threads_of_process(), others);
    EXPECT(!broker.figures().looking);
    broker.resume();
    while (broker.figures().sessions_without_channel > 0) std::this_thread::yield();
  }));
}

TEST(an_address_is_this_processs_own) {
  Broker& broker = Broker::instance();
  EXPECT(!broker.is_own({}));  // before there is one
  const auto address = broker.address();
  EXPECT_EQ(address->name.substr(0, 9), std::string(1, '\0') + "pgalloc-");
  EXPECT(address->path.starts_with("/proc/"));
  EXPECT(broker.is_own(address->secret));
  wire::Secret other = address->secret;
  other[15] ^= 1;
  EXPECT(!broker.is_own(other));
  EXPECT(*broker.address() == *address);
}

TEST(what_this_process_offers_it_can_claim_itself) {
  Broker& broker = Broker::instance();
  const auto file = native_tests::make_file();
  const auto others = native_tests::make_file();
  const FileRange range = native_tests::take_pages(*file, 3);
  const auto secret = broker.offer(file, range);
  EXPECT(file->dec_ref(range).ok());  // the offer has a reference of its own
  EXPECT_EQ(*broker.offered_file(*secret), file->id());
  const auto leases = broker.leases(file->id());
  EXPECT_EQ(leases.size(), 1u);
  EXPECT_EQ(leases[0].bytes, range.length());
  EXPECT_EQ(leases[0].pid, ::getpid());
  EXPECT(!leases[0].claimed);
  EXPECT(broker.leases(others->id()).empty());
  const auto claimed = broker.claim(*secret);
  EXPECT(claimed->file == file);
  EXPECT_EQ(claimed->range, range);
  EXPECT(!broker.offered_file(*secret));
  EXPECT_EQ(broker.claim(*secret).status().code(), ErrorCode::kSharing);
  EXPECT(broker.leases(file->id()).empty());
  EXPECT(*file->has_unique_ref(range));  // the caller's
  EXPECT(file->dec_ref(range).ok());
  EXPECT(file->wait_for_reclaim(std::nullopt));
  EXPECT_EQ(broker.offer(file, range).status().code(), ErrorCode::kRange);  // they are free
}

TEST(what_was_not_claimed_is_dropped_when_it_is_old) {
  Broker& broker = Broker::instance();
  const auto file = native_tests::make_file();
  const auto others = native_tests::make_file();
  const FileRange range = native_tests::take_pages(*file, 2);
  const FileRange theirs = native_tests::take_pages(*others, 1);
  constexpr uint64_t kOffers = 1100;  // more than two steps
  for (uint64_t i = 0; i < kOffers; ++i) EXPECT(broker.offer(file, range).ok());
  EXPECT(broker.offer(others, theirs).ok());
  EXPECT_EQ(broker.drop_unclaimed(file->id(), std::chrono::hours(1)), 0u);
  EXPECT_EQ(broker.figures().offers, kOffers + 1);
  EXPECT_EQ(broker.drop_unclaimed(file->id(), {}), kOffers * range.length());
  EXPECT_EQ(broker.figures().offers, 1u);
  EXPECT(*file->has_unique_ref(range));
  EXPECT_EQ(broker.drop_unclaimed(others->id(), {}), theirs.length());
  EXPECT_EQ(broker.drop_unclaimed(others->id(), {}), 0u);
}

TEST(a_listener_serves_until_it_is_stopped) {
  Broker& broker = Broker::instance();
  EXPECT_EQ(broker.serve(12345, {}).status().error_number(), EBADF);
  const auto file = native_tests::make_file();
  const std::string name = std::string(1, '\0') + "pgalloc-broker-" + std::to_string(::getpid());
  Scope scope;
  scope.file = file;
  const auto number = broker.serve(os::kernel().listen_at(name.data(), name.size()), scope);
  EXPECT(number.ok());
  const size_t listeners = broker.figures().listeners;
  {
    const int fd = os::kernel().connect_to(name.data(), name.size());
    EXPECT(fd >= 0);
    EXPECT_EQ(os::kernel().set_receive_timeout(fd, 60000), 0);
    const Client client(fd);
    client.send(wire::pack(static_cast<uint8_t>(wire::Op::kHello), 1, uint32_t{1}, wire::Secret{}));
    client.send(wire::pack(static_cast<uint8_t>(wire::Op::kServed), 2));
    char answer[100];
    EXPECT(::recv(fd, answer, sizeof answer, 0) > 0);
    EXPECT_EQ(::recv(fd, answer, sizeof answer, 0), 8 + 9);
    EXPECT_EQ(broker.figures().channels, 1u);
  }
  broker.stop_serving(*number);
  EXPECT_EQ(broker.figures().listeners, listeners - 1);
  EXPECT(os::kernel().connect_to(name.data(), name.size()) < 0);
  EXPECT(is_answered());
}

TEST(a_parked_broker_answers_when_it_goes_on) {
  Broker& broker = Broker::instance();
  broker.resume();  // once too often
  EXPECT(is_answered());
  broker.park();
  broker.park();
  EXPECT_EQ(native_tests::threads_of_process(), 1u);
  EXPECT(broker.address().ok());
  EXPECT_EQ(native_tests::threads_of_process(), 1u);
  broker.resume();
  EXPECT_EQ(native_tests::threads_of_process(), 1u);
  broker.resume();
  EXPECT_EQ(native_tests::threads_of_process(), 2u);
  EXPECT(is_answered());
  EXPECT_EQ(broker.verify(), std::nullopt);
}

}  // namespace
}  // namespace pgalloc::broker_test
