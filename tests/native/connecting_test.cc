// How a process connects to an owner of pages.

#include "sharing/connecting.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <string>

#include "native/sharing.h"
#include "os/descriptor.h"
#include "os/syscalls.h"

namespace pgalloc::connecting_test {
namespace {

using native_tests::descriptor_count;
using native_tests::FakeKernel;

const std::string kName("\0pgalloc-connecting-test", 24);

OwnerLink::Patience patience(bool keep_waiting = true) {
  return {std::chrono::steady_clock::now() + std::chrono::minutes(1),
          [keep_waiting] { return keep_waiting; }};
}
Result<Connecting::Connected> connect(bool keep_waiting = true) {
  return Connecting::to(kName, "there", ::geteuid(), patience(keep_waiting));
}

int refused = 0;
int failures = 0;  // then the kernel does it
int connect_refused(int fd, const char* name, size_t size) {
  if (failures-- > 0) return errno = refused, -1;
  return os::kernel().connect(fd, name, size);
}
int socket_refused() { return errno = EMFILE, -1; }
int set_send_timeout_refused(int, int) { return errno = EDOM, -1; }
int other_user(int fd, int option, void* value, socklen_t* size) {
  const int result = os::kernel().getsockopt(fd, option, value, size);
  if (option == SO_PEERCRED) static_cast<ucred*>(value)->uid = ::geteuid() + 1;
  return result;
}

TEST(it_connects_to_what_listens_and_says_whose_it_is) {
  const os::Descriptor listener(os::kernel().listen_at(kName.data(), kName.size()));
  const size_t before = descriptor_count();
  {
    const auto connected = connect();
    EXPECT(connected.ok());
    EXPECT_EQ(connected->owner, ::geteuid());
    EXPECT_EQ(descriptor_count(), before + 2);  // the link's, and of the owner's process
  }
  EXPECT_EQ(descriptor_count(), before);
}

TEST(where_none_listens_its_name_is_told) {
  const auto connected = connect();
  EXPECT(connected.status().code() == ErrorCode::kOwnerGone);
  EXPECT(connected.status().message().find("there") != std::string::npos);
}

TEST(another_users_is_refused) {
  FakeKernel kernel;
  kernel.begin();
  kernel.calls.getsockopt = other_user;
  const os::Descriptor listener(os::kernel().listen_at(kName.data(), kName.size()));
  EXPECT(connect().status().code() == ErrorCode::kSharing);
}

TEST(a_call_that_is_interrupted_is_made_again_unless_its_caller_waits_no_longer) {
  FakeKernel kernel;
  kernel.begin();
  kernel.calls.connect = connect_refused;
  const os::Descriptor listener(os::kernel().listen_at(kName.data(), kName.size()));
  refused = EINTR;
  failures = 3;
  EXPECT(connect().ok());
  failures = 3;
  EXPECT(connect(/*keep_waiting=*/false).status().code() == ErrorCode::kInterrupted);
  failures = 1'000'000;  // always
  EXPECT_EQ(connect().status().error_number(), EINTR);
}

TEST(what_fails_leaves_nothing_open) {
  const size_t before = descriptor_count();
  FakeKernel kernel;
  kernel.begin();
  kernel.calls.connect = connect_refused;
  for (const int error : {EACCES, EAGAIN, ECONNREFUSED}) {
    refused = error;
    failures = 1;
    const bool gone = error != EACCES;
    const ErrorCode expected = gone ? ErrorCode::kOwnerGone : ErrorCode::kSystem;
    EXPECT(connect().status().code() == expected);
  }
  kernel.calls.set_send_timeout = set_send_timeout_refused;
  EXPECT_EQ(connect().status().error_number(), EDOM);
  kernel.calls.socket = socket_refused;
  EXPECT_EQ(connect().status().error_number(), EMFILE);
  EXPECT_EQ(descriptor_count(), before);
}

}  // namespace
}  // namespace pgalloc::connecting_test
