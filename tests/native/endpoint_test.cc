// Sockets that a program closes, or replaces, though they are not its own.

#include "sharing/endpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "native/sharing.h"

namespace pgalloc::endpoint_test {
namespace {

using native_tests::FakeKernel;
using Io = Endpoint::Io;

struct Pair {
  Pair() { EXPECT_EQ(os::kernel().socketpair(ends), 0); }
  int ends[2];
};

int refused = 0;
int fstat_refused(int, struct stat*) { return errno = refused, -1; }
ssize_t sendmsg_refused(int, const msghdr*, int) { return errno = refused, -1; }
int getsockopt_refused(int, int, void*, socklen_t*) { return errno = refused, -1; }
ssize_t recvmsg_refused(int, msghdr*, int) { return errno = refused, -1; }

TEST(the_kernel_says_who_has_sent_a_packet) {
  int pair[2];
  EXPECT_EQ(os::kernel().socketpair(pair), 0);
  Endpoint here(pair[0]);
  Endpoint there(pair[1]);
  EXPECT(there.name_senders());
  const pid_t child = ::fork();
  int error = 0;
  if (child == 0) {
    here.send("it is another", {}, pair[0], &error);  // a descriptor comes along
    ::_exit(0);
  }
  ::waitpid(child, nullptr, 0);
  char bytes[20];
  size_t got = 0;
  const size_t before = native_tests::descriptor_count();
  {
    Endpoint::Sender sender;
    EXPECT_EQ(there.receive(bytes, sizeof bytes, &got, &sender, &error), Endpoint::Io::kDone);
    EXPECT_EQ(sender.pid, child);
    EXPECT_EQ(got, 13u);
  }
  EXPECT_EQ(native_tests::descriptor_count(), before);  // what came along is not kept
}

TEST(the_kernel_gives_a_handle_of_who_sends_the_first_packet) {
  int pair[2];
  EXPECT_EQ(os::kernel().socketpair(pair), 0);
  Endpoint here(pair[0]);
  Endpoint there(pair[1]);
  EXPECT(there.name_senders());
  int error = 0;
  char byte = 0;
  size_t got = 0;
  for (const bool first : {true, false}) {
    EXPECT_EQ(here.send("x", "", -1, &error), Io::kDone);
    Endpoint::Sender sender;
    EXPECT_EQ(there.receive(&byte, 1, &got, &sender, &error), Io::kDone);
    EXPECT_EQ(sender.handle.open(), first);
    if (!first) continue;
    pollfd waits{sender.handle.fd(), POLLIN, 0};
    EXPECT_EQ(::poll(&waits, 1, 0), 0);  // a process, which lives
  }
}

TEST(packets_go_through_whole) {
  const Pair pair;
  Endpoint here(pair.ends[0]);
  Endpoint there(pair.ends[1]);
  int error = 0;
  EXPECT_EQ(here.send("head", "rest", -1, &error), Io::kDone);
  char bytes[100];
  size_t got = 0;
  EXPECT_EQ(there.receive(bytes, sizeof bytes, &got, &error), Io::kDone);
  EXPECT_EQ(std::string(bytes, got), "headrest");
  EXPECT_EQ(there.receive(bytes, sizeof bytes, &got, &error), Io::kAgain);
}

TEST(the_end_of_the_other_side_is_seen) {
  const Pair pair;
  Endpoint here(pair.ends[0]);
  ::close(pair.ends[1]);
  int error = 0;
  char byte = 0;
  size_t got = 0;
  EXPECT_EQ(here.receive(&byte, 1, &got, &error), Io::kEnded);
  EXPECT_EQ(here.send("x", "", -1, &error), Io::kEnded);
}

TEST(what_was_sent_before_the_end_is_read_although_the_other_side_left_something_unread) {
  const Pair pair;
  Endpoint here(pair.ends[0]);
  int error = 0;
  EXPECT_EQ(here.send("never read", {}, -1, &error), Io::kDone);
  {
    Endpoint there(pair.ends[1]);
    EXPECT_EQ(there.send("the last", {}, -1, &error), Io::kDone);
  }
  char bytes[20];
  size_t got = 0;
  EXPECT_EQ(here.receive(bytes, sizeof bytes, &got, &error), Io::kDone);
  EXPECT_EQ(std::string(bytes, got), "the last");
  EXPECT_EQ(here.receive(bytes, sizeof bytes, &got, &error), Io::kEnded);
}

TEST(a_descriptor_that_was_closed_is_not_used) {
  const Pair pair;
  const size_t before = native_tests::descriptor_count();
  {
    Endpoint here(pair.ends[0]);
    ::close(pair.ends[0]);
    EXPECT(!here.intact());
    int error = 0;
    EXPECT_EQ(here.send("x", "", -1, &error), Io::kLost);
  }
  EXPECT_EQ(native_tests::descriptor_count(), before - 1);
  ::close(pair.ends[1]);
}

TEST(a_descriptor_that_was_replaced_is_neither_used_nor_closed) {
  const Pair pair;
  const Pair other;
  {
    Endpoint here(pair.ends[0]);
    EXPECT(::dup2(other.ends[0], pair.ends[0]) >= 0);
    int error = 0;
    char byte = 0;
    size_t got = 0;
    EXPECT_EQ(here.send("x", "", -1, &error), Io::kLost);
    EXPECT_EQ(here.receive(&byte, 1, &got, &error), Io::kLost);
  }
  EXPECT(::fcntl(pair.ends[0], F_GETFD) >= 0);
  for (const int fd : {pair.ends[0], pair.ends[1], other.ends[0], other.ends[1]}) ::close(fd);
}

TEST(what_cannot_be_known_again_is_closed_at_once) {
  const Pair pair;
  FakeKernel kernel;
  kernel.calls.fstat = fstat_refused;
  kernel.begin();
  refused = ENOMEM;
  Endpoint here(pair.ends[0]);
  EXPECT_EQ(errno, ENOMEM);
  EXPECT(!here.open());
  EXPECT(::fcntl(pair.ends[0], F_GETFD) < 0);
  ::close(pair.ends[1]);
}

TEST(an_error_of_the_kernel_is_no_proof_that_it_was_closed) {
  const Pair pair;
  Endpoint here(pair.ends[0]);
  FakeKernel kernel;
  kernel.calls.fstat = fstat_refused;
  kernel.calls.getsockopt = getsockopt_refused;
  kernel.begin();
  for (const int error : {ENOMEM, EIO, EINTR, EOVERFLOW}) {
    refused = error;
    EXPECT(here.intact());
  }
  for (const int error : {EBADF, ENOTSOCK}) {
    refused = error;
    EXPECT(!here.intact());
  }
  refused = EIO;
  here.close();
  EXPECT(::fcntl(pair.ends[0], F_GETFD) < 0);
  ::close(pair.ends[1]);
}

TEST(without_cookies_a_socket_is_known_by_its_inode) {
  const Pair pair;
  FakeKernel kernel;
  kernel.calls.getsockopt = getsockopt_refused;
  kernel.begin();
  refused = ENOPROTOOPT;
  Endpoint here(pair.ends[0]);
  EXPECT(here.intact());
  const Pair other;
  EXPECT(::dup2(other.ends[0], pair.ends[0]) == pair.ends[0]);
  EXPECT(!here.intact());
  for (const int fd : {pair.ends[0], pair.ends[1], other.ends[0], other.ends[1]}) ::close(fd);
}

TEST(what_the_kernel_refuses_may_be_tried_again) {
  const Pair pair;
  Endpoint here(pair.ends[0]);
  FakeKernel kernel;
  kernel.calls.sendmsg = sendmsg_refused;
  kernel.calls.recvmsg = recvmsg_refused;
  kernel.begin();
  int error = 0;
  char byte = 0;
  size_t got = 0;
  for (const int each : {ENOBUFS, ENOMEM, ETOOMANYREFS, EPERM, EBADF}) {
    refused = each;
    EXPECT_EQ(here.send("x", "", -1, &error), Io::kRefused);
    EXPECT_EQ(here.receive(&byte, 1, &got, &error), Io::kRefused);
    EXPECT_EQ(error, each);
  }
  ::close(pair.ends[1]);
}

TEST(what_an_error_means_for_a_packet) {
  const Pair pair;
  Endpoint here(pair.ends[0]);
  Endpoint there(pair.ends[1]);
  FakeKernel kernel;
  kernel.calls.sendmsg = sendmsg_refused;
  kernel.calls.recvmsg = recvmsg_refused;
  kernel.begin();
  const std::pair<int, Io> meanings[] = {{EAGAIN, Io::kAgain},     {EINTR, Io::kAgain},
                                         {EPIPE, Io::kEnded},      {ECONNRESET, Io::kEnded},
                                         {ENOTCONN, Io::kEnded},   {ENOMEM, Io::kRefused},
                                         {EMSGSIZE, Io::kRefused}, {ECONNREFUSED, Io::kRefused}};
  for (const auto& [each, meaning] : meanings) {
    refused = each;
    int error = 0;
    char byte = 0;
    size_t got = 0;
    EXPECT_EQ(here.send("x", "", -1, &error), meaning);
    EXPECT_EQ(error, each);
    error = 0;
    EXPECT_EQ(here.receive(&byte, 1, &got, &error), meaning);
    EXPECT_EQ(error, each);
  }
}

TEST(no_sender_is_named_unless_that_was_asked_for) {
  const Pair pair;
  Endpoint here(pair.ends[0]);
  Endpoint there(pair.ends[1]);
  int error = 0;
  char byte = 0;
  size_t got = 0;
  for (const pid_t named : {pid_t{0}, ::getpid()}) {
    if (named != 0) EXPECT(there.name_senders());
    EXPECT_EQ(here.send("x", "", -1, &error), Io::kDone);
    Endpoint::Sender sender{5, {}};
    EXPECT_EQ(there.receive(&byte, 1, &got, &sender, &error), Io::kDone);
    EXPECT_EQ(sender.pid, named);
  }
  FakeKernel kernel;
  kernel.calls.pass_credentials = [](int) { return errno = ENOMEM, -1; };
  kernel.begin();
  EXPECT(!there.name_senders());
  ::close(pair.ends[1]);
  EXPECT(!there.name_senders());
}

// One packet with so many descriptors.
void send_descriptors(int socket, size_t count) {
  char byte = 'd';
  iovec part{&byte, 1};
  alignas(cmsghdr) char room[CMSG_SPACE(8 * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = room;
  message.msg_controllen = CMSG_SPACE(count * sizeof(int));
  cmsghdr* const rights = CMSG_FIRSTHDR(&message);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(count * sizeof(int));
  const std::vector<int> descriptors(count, socket);
  std::memcpy(CMSG_DATA(rights), descriptors.data(), count * sizeof(int));
  EXPECT_EQ(::sendmsg(socket, &message, 0), 1);
}

TEST(one_descriptor_comes_along_and_of_several_none_stays) {
  const Pair pair;
  Endpoint there(pair.ends[1]);
  const size_t before = native_tests::descriptor_count();
  for (const size_t count : {1, 2, 4, 5, 8}) {
    send_descriptors(pair.ends[0], count);
    Endpoint::Received received;
    int error = 0;
    char byte = 0;
    EXPECT_EQ(there.receive(&byte, 1, &received, &error), Io::kDone);
    EXPECT_EQ(received.size, 1u);
    EXPECT(!received.truncated);
    EXPECT(!received.lost_descriptor);
    EXPECT_EQ(received.descriptor >= 0, count == 1);
    if (count == 1) EXPECT(::fcntl(received.descriptor, F_GETFD) & FD_CLOEXEC);
    if (count == 1) ::close(received.descriptor);
    EXPECT_EQ(native_tests::descriptor_count(), before);
  }
  // And where none was asked for, it stays with the kernel.
  send_descriptors(pair.ends[0], 1);
  char byte = 0;
  size_t got = 0;
  int error = 0;
  EXPECT_EQ(there.receive(&byte, 1, &got, &error), Io::kDone);
  EXPECT_EQ(native_tests::descriptor_count(), before);
  ::close(pair.ends[0]);
}

TEST(a_descriptor_for_which_the_table_is_full_is_lost) {
  const Pair pair;
  Endpoint there(pair.ends[1]);
  send_descriptors(pair.ends[0], 1);
  rlimit limit{};
  EXPECT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit none{0, limit.rlim_max};
  EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  Endpoint::Received received;
  int error = 0;
  char byte = 0;
  EXPECT_EQ(there.receive(&byte, 1, &received, &error), Io::kDone);
  EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT(received.lost_descriptor);
  EXPECT_EQ(received.descriptor, -1);
  ::close(pair.ends[0]);
}

TEST(a_packet_that_is_too_long_is_said_to_be_truncated) {
  const Pair pair;
  Endpoint here(pair.ends[0]);
  Endpoint there(pair.ends[1]);
  for (const size_t size : {3u, 4u, 5u}) {
    int error = 0;
    EXPECT_EQ(here.send(std::string(size, 'x'), "", -1, &error), Io::kDone);
    Endpoint::Received received;
    char bytes[4];
    EXPECT_EQ(there.receive(bytes, sizeof bytes, &received, &error), Io::kDone);
    EXPECT_EQ(received.truncated, size > 4);
    EXPECT_EQ(received.size, std::min<size_t>(size, 4));
    EXPECT_EQ(received.descriptor, -1);
  }
}

int flags_seen = 0;
ssize_t recvmsg_noted(int, msghdr*, int flags) {
  flags_seen = flags;
  return errno = EAGAIN, -1;
}
int timeout_seen = 0;

TEST(a_wait_is_one_and_a_receive_is_none) {
  const Pair pair;
  Endpoint here(pair.ends[0]);
  FakeKernel kernel;
  kernel.calls.recvmsg = recvmsg_noted;
  kernel.calls.set_receive_timeout = [](int, int timeout_ms) {
    timeout_seen = timeout_ms;
    return timeout_ms == 77 ? 0 : -1;
  };
  kernel.begin();
  EXPECT(here.set_timeout(std::chrono::milliseconds(77)));
  EXPECT_EQ(timeout_seen, 77);
  EXPECT(!here.set_timeout(std::chrono::milliseconds(78)));
  Endpoint::Received received;
  int error = 0;
  char byte = 0;
  EXPECT_EQ(here.wait(&byte, 1, &received, &error), Io::kAgain);
  EXPECT_EQ(flags_seen, MSG_CMSG_CLOEXEC);
  EXPECT_EQ(here.receive(&byte, 1, &received, &error), Io::kAgain);
  EXPECT_EQ(flags_seen, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  ::close(pair.ends[0]);
  EXPECT(!here.set_timeout(std::chrono::milliseconds(77)));
  EXPECT_EQ(here.wait(&byte, 1, &received, &error), Io::kLost);
  ::close(pair.ends[1]);
}

TEST(a_descriptor_moves_with_what_is_known_of_it) {
  const Pair pair;
  os::Descriptor first(pair.ends[0]);
  os::Descriptor second(pair.ends[1]);
  EXPECT(first.intact() && second.intact());
  second = std::move(first);
  EXPECT(!first.open());  // NOLINT(bugprone-use-after-move)
  EXPECT(second.intact());
  EXPECT_EQ(second.fd(), pair.ends[0]);
  EXPECT(::fcntl(pair.ends[1], F_GETFD) < 0);  // what was there before is closed
  os::Descriptor& itself = second;
  second = std::move(itself);
  EXPECT(second.intact());
  os::Descriptor third(std::move(second));
  EXPECT(third.intact());
  const int fd = third.release();
  EXPECT_EQ(fd, pair.ends[0]);
  third.close();
  EXPECT(::fcntl(fd, F_GETFD) >= 0);
  ::close(fd);
  const os::Descriptor none;
  EXPECT(!none.open() && !none.intact());
}

TEST(another_device_is_another_file) {
  // Inode numbers of two file systems may be the same: stat() is made to say so.
  static dev_t device = 1;
  const Pair pair;
  FakeKernel kernel;
  kernel.calls.fstat = [](int, struct stat* out) {
    *out = {};
    out->st_ino = 5;
    out->st_dev = device;
    return 0;
  };
  kernel.begin();
  const os::Descriptor descriptor(pair.ends[0]);
  EXPECT(descriptor.intact());
  device = 2;
  EXPECT(!descriptor.intact());
  device = 1;
  ::close(pair.ends[1]);
}

}  // namespace
}  // namespace pgalloc::endpoint_test
