// Whether a process can still see pages, asked of real ones.

#include "sharing/peer_process.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "native/sharing.h"

namespace pgalloc::peer_process_test {
namespace {

using native_tests::FakeKernel;

// A file, and a process that has it mapped until it is told.
class Child {
 public:
  Child() {
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, line_), 0);
    file = os::kernel().memfd_create("child", 0);
    EXPECT_EQ(::ftruncate(file, static_cast<off_t>(page_size())), 0);
    pid = ::fork();
    if (pid != 0) {
      wait();
      return;
    }
    void* const mapped = ::mmap(nullptr, page_size(), PROT_READ, MAP_SHARED, file, 0);
    char byte = 0;
    (void)!::write(line_[1], "m", 1);
    (void)!::read(line_[1], &byte, 1);
    ::munmap(mapped, page_size());
    (void)!::write(line_[1], "u", 1);
    (void)!::read(line_[1], &byte, 1);
    ::_exit(0);
  }
  ~Child() {
    end();
    for (const int fd : {line_[0], line_[1], file}) ::close(fd);
  }
  void unmap() {
    (void)!::write(line_[0], "u", 1);
    wait();
  }
  void kill() const { ::kill(pid, SIGKILL); }
  void end() {
    if (pid <= 0) return;
    kill();
    ::waitpid(pid, nullptr, 0);
    pid = 0;
  }

  int file = -1;
  pid_t pid = 0;

 private:
  void wait() {
    char byte = 0;
    (void)!::read(line_[0], &byte, 1);
  }
  int line_[2];
};

bool sees(const Child& child, pid_t pid) {
  return PeerProcess(-1, pid).may_see({FileIdentity::of(child.file)});
}

int refused = 0;
int pidfd_refused(pid_t) { return errno = refused, -1; }
int open_refused(const char*, int, mode_t) { return errno = refused, -1; }
ssize_t read_refused(int, void*, size_t) { return errno = refused, -1; }
int poll_refused(pollfd*, nfds_t, int) { return errno = refused, -1; }
int fstat_refused(int, struct stat*) { return errno = refused, -1; }

TEST(a_process_sees_what_it_has_mapped) {
  Child child;
  EXPECT(sees(child, child.pid));
  child.unmap();
  EXPECT(!sees(child, child.pid));
}

TEST(a_dead_process_sees_nothing_before_it_was_reaped_and_after) {
  Child child;
  const pid_t pid = child.pid;
  child.kill();
  siginfo_t info{};
  EXPECT_EQ(::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT), 0);
  EXPECT(!sees(child, pid));
  child.end();
  EXPECT(!sees(child, pid));
}

TEST(a_stopped_process_sees_its_pages) {
  const Child child;
  ::kill(child.pid, SIGSTOP);
  EXPECT(sees(child, child.pid));
  ::kill(child.pid, SIGCONT);
}

TEST(who_holds_nothing_sees_nothing) {
  const Child child;
  EXPECT(!PeerProcess(-1, child.pid).may_see({}));
  EXPECT(!sees(child, 0));
}

TEST(an_error_never_makes_a_process_look_dead) {
  const Child child;
  for (const int error : {EMFILE, ENFILE, ENOMEM, EPERM, ENOSYS, EINVAL, EIO, EINTR, EBADF}) {
    refused = error;
    FakeKernel kernel;
    kernel.calls.pidfd_open = pidfd_refused;
    kernel.begin();
    EXPECT(sees(child, child.pid));  // by its maps
    kernel.calls = os::kernel();
    kernel.calls.open = open_refused;
    kernel.begin();
    EXPECT(sees(child, child.pid));
    kernel.calls = os::kernel();
    kernel.calls.read = read_refused;
    kernel.begin();
    EXPECT(sees(child, child.pid));
    kernel.calls = os::kernel();
    kernel.calls.poll = poll_refused;
    kernel.begin();
    EXPECT(sees(child, child.pid));
    kernel.calls = os::kernel();
    kernel.calls.fstat = fstat_refused;
    kernel.begin();
    EXPECT(sees(child, child.pid));
  }
}

TEST(a_file_that_maps_shows_otherwise_keeps_its_leases) {
  Child child;
  child.unmap();
  FileIdentity file = FileIdentity::of(child.file);
  EXPECT(file.known);
  file.known = false;
  EXPECT(PeerProcess(-1, child.pid).may_see({file}));
  child.kill();
  ::waitpid(child.pid, nullptr, 0);
  EXPECT(!PeerProcess(-1, std::exchange(child.pid, 0)).may_see({file}));
}

TEST(no_descriptor_is_left) {
  const Child child;
  const size_t before = native_tests::descriptor_count();
  for (int i = 0; i < 3; ++i) EXPECT(sees(child, child.pid));
  EXPECT_EQ(native_tests::descriptor_count(), before);
}

}  // namespace
}  // namespace pgalloc::peer_process_test
