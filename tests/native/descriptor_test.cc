// Descriptors of ours are closed once, and not when their number is another file's by then.

#include "os/descriptor.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "native/support.h"

namespace pgalloc::descriptor_test {
namespace {

using native_tests::FakeKernel;
using os::Descriptor;

bool is_open(int fd) { return ::fcntl(fd, F_GETFD) >= 0; }
int some_file() { return ::memfd_create("some", MFD_CLOEXEC); }

TEST(the_end_of_a_descriptor_closes_it) {
  int fd = -1;
  {
    const Descriptor descriptor(some_file());
    EXPECT(descriptor.open() && descriptor.intact());
    fd = descriptor.fd();
    EXPECT(is_open(fd));
  }
  EXPECT(!is_open(fd));
}

TEST(what_could_not_be_opened_is_nothing) {
  const Descriptor none;
  const Descriptor failed(-1);
  EXPECT(!none.open() && !failed.open());
  EXPECT(!none.intact() && !failed.intact());
}

TEST(a_descriptor_that_moves_is_closed_where_it_went) {
  const int fd = some_file();
  const int other = some_file();
  Descriptor third(other);
  {
    Descriptor first(fd);
    Descriptor second(std::move(first));
    EXPECT(!first.open());  // NOLINT(bugprone-use-after-move)
    EXPECT_EQ(second.fd(), fd);
    third = std::move(second);
    EXPECT(!is_open(other));
  }
  EXPECT(is_open(fd));
  third = {};
  EXPECT(!is_open(fd));
}

TEST(a_number_that_is_another_files_by_now_is_left_alone) {
  Descriptor descriptor(some_file());
  const int fd = descriptor.fd();
  const int other = some_file();
  EXPECT(!descriptor.is_same_file(other));
  EXPECT_EQ(::dup2(other, fd), fd);
  EXPECT(!descriptor.intact());
  descriptor.close();
  EXPECT(is_open(fd));
  ::close(fd);
  ::close(other);
}

TEST(what_was_closed_from_outside_is_noticed) {
  Descriptor descriptor(some_file());
  ::close(descriptor.fd());
  EXPECT(!descriptor.intact());
}

int fstat_refused(int, struct stat*) { return errno = EIO, -1; }

TEST(what_cannot_be_known_again_is_not_taken_over) {
  const int fd = some_file();
  FakeKernel kernel;
  kernel.calls.fstat = fstat_refused;
  kernel.begin();
  const Descriptor descriptor(fd);
  EXPECT(!descriptor.open());
  EXPECT_EQ(errno, EIO);
  EXPECT(!is_open(fd));
}

TEST(an_error_of_the_kernels_is_no_sign_that_it_was_closed) {
  const Descriptor descriptor(some_file());
  FakeKernel kernel;
  kernel.calls.fstat = fstat_refused;
  kernel.begin();
  EXPECT(descriptor.intact());
}

// The program has closed its standard streams.
struct WithoutStandardStreams {
  WithoutStandardStreams() {
    for (int fd = 0; fd < 3; ++fd) {
      kept[fd] = ::fcntl(fd, F_DUPFD_CLOEXEC, 100);
      ::close(fd);
    }
  }
  ~WithoutStandardStreams() {
    for (int fd = 0; fd < 3; ++fd) {
      if (kept[fd] < 0) continue;
      ::dup2(kept[fd], fd);
      ::close(kept[fd]);
    }
  }
  int kept[3];
};

TEST(no_descriptor_of_ours_is_a_standard_stream) {
  const auto& kernel = os::kernel();
  std::vector<int> made;
  ssize_t sent = 0;
  ssize_t got = 0;
  bool taken = false;  // what is expected is said afterwards: there is no standard output here
  {
    const WithoutStandardStreams closed;
    made = {kernel.open("/dev/null", O_RDONLY | O_CLOEXEC, 0),
            kernel.memfd_create("x", MFD_CLOEXEC),
            kernel.eventfd(0, EFD_CLOEXEC),
            kernel.watch_writes(),
            kernel.epoll_create(),
            kernel.socket(),
            kernel.pidfd_open(::getpid())};
    made.push_back(kernel.duplicate(made[0]));
    int pair[2] = {-1, -1};
    (void)kernel.socketpair(pair);
    made.insert(made.end(), {pair[0], pair[1]});
    // Nor is one that is sent to us.
    char byte = 'x';
    iovec part{&byte, 1};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* const rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(rights), &made[0], sizeof(int));
    sent = kernel.sendmsg(pair[0], &message, 0);
    message.msg_controllen = sizeof control;
    got = kernel.recvmsg(pair[1], &message, MSG_CMSG_CLOEXEC);
    int arrived = -1;
    std::memcpy(&arrived, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
    made.push_back(arrived);
    for (int fd = 0; fd < 3; ++fd) taken = taken || is_open(fd);
  }
  EXPECT_EQ(sent, 1);
  EXPECT_EQ(got, 1);
  EXPECT(!taken);
  for (const int fd : made) {
    EXPECT(fd > 2);
    ::close(fd);
  }
}

}  // namespace
}  // namespace pgalloc::descriptor_test
