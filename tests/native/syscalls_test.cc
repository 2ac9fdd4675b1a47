// The calls that are more than one of the kernel's.

#include "os/syscalls.h"

#include <errno.h>
#include <fcntl.h>

#include "native/support.h"
#include "os/descriptor.h"

namespace pgalloc::syscalls_test {
namespace {

const os::Syscalls& kernel = os::kernel();

TEST(names_of_sockets_have_108_bytes_at_most) {
  const std::string start = std::string(1, '\0') + "pgalloc " + std::to_string(::getpid()) + " ";
  for (const size_t size : {start.size(), size_t{107}, size_t{108}}) {
    const std::string name = start + std::string(size - start.size(), 'n');
    const os::Descriptor listener(kernel.listen_at(name.data(), name.size()));
    EXPECT(listener.open());
    EXPECT_EQ(kernel.listen_at(name.data(), name.size()), -1);
    EXPECT_EQ(errno, EADDRINUSE);
    const os::Descriptor connected(kernel.connect_to(name.data(), name.size()));
    EXPECT(connected.open());
    const os::Descriptor accepted(kernel.accept(listener.fd()));
    EXPECT(accepted.open());
    for (const int fd : {listener.fd(), connected.fd(), accepted.fd()}) {
      EXPECT(::fcntl(fd, F_GETFD) & FD_CLOEXEC);
      EXPECT(::fcntl(fd, F_GETFL) & O_NONBLOCK);
    }
  }
  const std::string longer = start + std::string(109 - start.size(), 'n');
  for (const auto call : {kernel.listen_at, kernel.connect_to}) {
    EXPECT_EQ(call(longer.data(), longer.size()), -1);
    EXPECT_EQ(errno, ENAMETOOLONG);
  }
  EXPECT_EQ(kernel.connect_to(start.data(), start.size()), -1);  // no one listens any more
  EXPECT_EQ(errno, ECONNREFUSED);
}

}  // namespace
}  // namespace pgalloc::syscalls_test
