// Sockets that a program closes, or replaces, though they are not its own.

#include "sharing/endpoint.h"

#include <errno.h>
#include <fcntl.h>
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
  const Endpoint here(pair[0]);
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
  pid_t sender = 0;
  EXPECT_EQ(there.receive(bytes, sizeof bytes, &got, &sender, &error), Endpoint::Io::kDone);
  EXPECT_EQ(sender, child);
  EXPECT_EQ(got, 13u);
}

TEST(packets_go_through_whole) {
  const Pair pair;
  const Endpoint here(pair.ends[0]);
  const Endpoint there(pair.ends[1]);
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
  const Endpoint here(pair.ends[0]);
  ::close(pair.ends[1]);
  int error = 0;
  char byte = 0;
  size_t got = 0;
  EXPECT_EQ(here.receive(&byte, 1, &got, &error), Io::kEnded);
  EXPECT_EQ(here.send("x", "", -1, &error), Io::kEnded);
}

TEST(what_was_sent_before_the_end_is_read_although_the_other_side_left_something_unread) {
  const Pair pair;
  const Endpoint here(pair.ends[0]);
  int error = 0;
  EXPECT_EQ(here.send("never read", {}, -1, &error), Io::kDone);
  {
    const Endpoint there(pair.ends[1]);
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
    const Endpoint here(pair.ends[0]);
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
    const Endpoint here(pair.ends[0]);
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
  const Endpoint here(pair.ends[0]);
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
  const Endpoint here(pair.ends[0]);
  EXPECT(here.intact());
  const Pair other;
  EXPECT(::dup2(other.ends[0], pair.ends[0]) == pair.ends[0]);
  EXPECT(!here.intact());
  for (const int fd : {pair.ends[0], pair.ends[1], other.ends[0], other.ends[1]}) ::close(fd);
}

TEST(what_the_kernel_refuses_may_be_tried_again) {
  const Pair pair;
  const Endpoint here(pair.ends[0]);
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

}  // namespace
}  // namespace pgalloc::endpoint_test
