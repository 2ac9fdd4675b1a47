// Whether a process can still see pages, asked of real ones.

#include "sharing/peer_process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

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
  return PeerProcess(pid).may_see({FileIdentity::of(child.file)});
}

int refused = 0;
int pidfd_refused(pid_t) { return errno = refused, -1; }
int open_refused(const char*, int, mode_t) { return errno = refused, -1; }
int open_refused_of_others(const char* path, int flags, mode_t mode) {
  if (std::string_view(path).starts_with("/proc/self/")) return ::open(path, flags, mode);
  return errno = refused, -1;
}
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
  EXPECT(!PeerProcess(child.pid).may_see({}));
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
  EXPECT(PeerProcess(child.pid).may_see({file}));
  child.kill();
  ::waitpid(child.pid, nullptr, 0);
  EXPECT(!PeerProcess(std::exchange(child.pid, 0)).may_see({file}));
}

TEST(no_descriptor_is_left) {
  const Child child;
  const size_t before = native_tests::descriptor_count();
  for (int i = 0; i < 3; ++i) EXPECT(sees(child, child.pid));
  EXPECT_EQ(native_tests::descriptor_count(), before);
}

// --- What /proc and stat() say, made up ----------------------------------------------------------

std::string maps;
size_t maps_at = 0;
size_t piece_max = 0;
int maps_file = -1;
int open_maps(const char* path, int flags, mode_t mode) {
  const int file = os::kernel().open(path, flags, mode);
  if (std::string_view(path).ends_with("/maps")) {
    maps_file = file;
  } else if (file == maps_file) {
    maps_file = -1;
  }
  return file;
}
ssize_t read_maps(int file, void* data, size_t size) {
  if (file != maps_file) return os::kernel().read(file, data, size);
  const size_t count = std::min({maps.size() - maps_at, piece_max, size});
  std::memcpy(data, maps.data() + maps_at, count);
  maps_at += count;
  return static_cast<ssize_t>(count);
}

// Whether this process sees one of the files, by such maps that come in such pieces.
bool sees_by(const std::string& text, const std::vector<FileIdentity>& files, size_t piece) {
  FakeKernel kernel;
  kernel.calls.open = open_maps;
  kernel.calls.read = read_maps;
  maps = text;
  maps_at = 0;
  piece_max = piece;
  kernel.begin();
  const bool sees = PeerProcess(::getpid()).may_see(files);
  maps_file = -1;
  return sees;
}

TEST(maps_are_read_whatever_pieces_they_come_in) {
  const std::string text =
      "7f0000000000-7f0000001000 r--s 00000000 00:1f 1234 /memfd:one (deleted)\n"
      "7f0000001000-7f0000002000 rw-s 00001000 fe:00 77 /some file\n"
      "7f0000002000-7f0000003000 rw-p 00000000 00:00 0 \n";
  for (const size_t piece : {size_t{1}, size_t{7}, size_t{71}, size_t{72}, text.size()}) {
    EXPECT(sees_by(text, {{0, 0x1f, 1234, true}}, piece));
    EXPECT(sees_by(text, {{0xfe, 0, 77, true}}, piece));
    EXPECT(sees_by(text, {{1, 2, 3, true}, {0xfe, 0, 77, true}}, piece));
    // All three numbers have to be its own.
    EXPECT(!sees_by(text, {{0, 0x1f, 1235, true}}, piece));
    EXPECT(!sees_by(text, {{0, 0x1e, 1234, true}}, piece));
    EXPECT(!sees_by(text, {{1, 0x1f, 1234, true}}, piece));
    EXPECT(!sees_by(text, {{0xfe, 0x1f, 77, true}}, piece));
    // What cannot be told apart in maps may be seen.
    EXPECT(sees_by(text, {{1, 2, 3, true}, {1, 2, 4, false}}, piece));
  }
}

TEST(lines_that_are_none_say_nothing) {
  const std::vector<FileIdentity> files{{0, 0x1f, 1234, true}};
  const std::string start = "7f00-7f01 r--s 0000 ";
  for (const std::string& line :
       {std::string("no fields"), std::string("7f00-7f01 r--s 0000"), std::string("00:1f 1234"),
        start + "00", start + "00;1f 1234", start + "00:1f", start + "00:1f,1234",
        start + "x:1f 1234", start + "00:x 1234", start + "00:1f x", start}) {
    native_tests::context = line;
    EXPECT(!sees_by(line + "\n", files, SIZE_MAX));
    EXPECT(!sees_by(line + "\n", {{0, 0x1f, 0, true}}, SIZE_MAX));
    EXPECT(sees_by(line + "\n" + start + "00:1f 1234 /x\n", files, SIZE_MAX));
  }
  EXPECT(!sees_by(start + "00:1f 1234 /not a whole line", files, SIZE_MAX));
  EXPECT(sees_by("", files, SIZE_MAX));  // on its way out: its end is seen by the next look
}

dev_t device = 0;
long system_type = 0;
int stat_of_device(int, struct stat* out) {
  *out = {};
  out->st_dev = device;
  out->st_ino = 99;
  return 0;
}
int statfs_of_type(int, struct statfs* out) {
  *out = {};
  out->f_type = system_type;
  return system_type == 0 ? -1 : 0;
}

TEST(files_are_known_where_maps_and_stat_agree) {
  FakeKernel kernel;
  kernel.calls.fstat = stat_of_device;
  kernel.calls.fstatfs = statfs_of_type;
  kernel.begin();
  const struct {
    dev_t device;
    long type;
    bool known;
  } cases[] = {{makedev(0, 31), 0x01021994, true},
               {makedev(0, 31), 0x958458f6, true},
               {makedev(0, 31), 0x9123683e, false},
               {makedev(0, 31), 0x01021995, false},
               {makedev(0, 31), 0, false},
               {makedev(8, 1), 0x9123683e, true},
               {makedev(1, 0), 0, true}};
  for (const auto& each : cases) {
    device = each.device;
    system_type = each.type;
    const FileIdentity file = FileIdentity::of(0);
    EXPECT_EQ(file.known, each.known);
    EXPECT_EQ(file.major, major(device));
    EXPECT_EQ(file.minor, minor(device));
    EXPECT_EQ(file.inode, 99u);
  }
}

int process_of_socket = 0;
int getsockopt_of_process(int fd, int name, void* value, socklen_t* size) {
  if (name != 77) return os::kernel().getsockopt(fd, name, value, size);
  const int handle = os::kernel().pidfd_open(process_of_socket);
  std::memcpy(value, &handle, sizeof handle);
  return handle < 0 ? -1 : 0;
}

TEST(a_process_that_is_not_seen_is_known_by_the_socket_it_has_connected) {
  FakeKernel kernel;
  kernel.calls.getsockopt = getsockopt_of_process;
  kernel.begin();
  Child child;
  const std::vector<FileIdentity> files{FileIdentity::of(child.file)};
  process_of_socket = child.pid;
  const size_t before = native_tests::descriptor_count();
  {
    const PeerProcess process(kUnseen, PeerProcess::handle_of(0));
    EXPECT_EQ(native_tests::descriptor_count(), before + 1);
    child.unmap();
    EXPECT(process.may_see(files));  // as long as it lives
    EXPECT(!process.may_see({}));
    refused = EIO;
    kernel.calls.poll = poll_refused;
    kernel.begin();
    EXPECT(process.may_see(files));
    kernel.calls.poll = os::kernel().poll;
    kernel.begin();
    child.end();
    EXPECT(!process.may_see(files));
  }
  EXPECT_EQ(native_tests::descriptor_count(), before);
}

// Its number is a living process's by now.
TEST(a_process_is_told_from_another_one_that_has_its_number) {
  FakeKernel kernel;
  kernel.calls.getsockopt = getsockopt_of_process;
  kernel.begin();
  Child child;
  process_of_socket = child.pid;
  const PeerProcess process(::getpid(), PeerProcess::handle_of(0));
  EXPECT(!process.has_ended());
  child.end();
  EXPECT(process.has_ended());
}

TEST(a_process_that_is_not_known_may_see_all_that_it_held) {
  const Child child;
  const std::vector<FileIdentity> files{FileIdentity::of(child.file)};
  FakeKernel kernel;
  kernel.calls.getsockopt = [](int, int, void*, socklen_t*) { return errno = ENOPROTOOPT, -1; };
  kernel.begin();
  EXPECT(PeerProcess(kUnseen, PeerProcess::handle_of(0)).may_see(files));
  EXPECT(PeerProcess(kUnseen).may_see(files));
  EXPECT(!PeerProcess(kUnseen).may_see({}));
  EXPECT(!PeerProcess(0).may_see(files));  // a child that never was
}

// The next open() of "/proc/self/status" is of this file instead.
int status_file = -1;
int open_with_status(const char* path, int flags, mode_t mode) {
  if (std::string_view(path) != "/proc/self/status") return os::kernel().open(path, flags, mode);
  return status_file < 0 ? (errno = ENOENT, -1) : ::dup(status_file);
}
int file_with(const std::string& text) {
  const int file = os::kernel().memfd_create("status", 0);
  EXPECT_EQ(::pwrite(file, text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
  return file;
}

TEST(a_proc_of_other_processes_says_nothing) {
  Child child;
  child.unmap();
  FakeKernel kernel;
  kernel.calls.open = open_with_status;
  kernel.begin();
  EXPECT(sees(child, child.pid));  // it is not there
  const std::string own = std::to_string(::getpid());
  for (const std::string& text :
       {std::string(), std::string("Name:\tx\n"), "Pid:\t" + own, "Name:\tx\nPid:\t1" + own + "\n",
        "Name:\tx\nPPid:\t" + own + "\n", std::string("Name:\tx\nPid:\tx\n")}) {
    native_tests::context = text;
    status_file = file_with(text);
    EXPECT(sees(child, child.pid));
    ::close(status_file);
  }
  status_file = file_with("Name:\tx\nPid:\t" + own + "\nPPid:\t1\n");
  EXPECT(!sees(child, child.pid));
  kernel.calls.read = [](int file, void* data, size_t size) -> ssize_t {
    struct stat its{};
    struct stat status{};
    ::fstat(file, &its);
    ::fstat(status_file, &status);
    if (its.st_ino == status.st_ino) return errno = EIO, -1;
    return ::read(file, data, size);
  };
  kernel.begin();
  EXPECT(sees(child, child.pid));
  ::close(std::exchange(status_file, -1));
}

TEST(a_process_that_has_gone_while_it_was_read_has_gone_if_the_kernel_says_so) {
  const Child child;
  // Alive, but its maps say that it has gone: the next look sees that.
  for (const int error : {ENOENT, ESRCH}) {
    FakeKernel kernel;
    refused = error;
    kernel.calls.open = open_refused_of_others;
    kernel.begin();
    EXPECT(sees(child, child.pid));
    // Nor can it be told whether it lives.
    kernel.calls.pidfd_open = [](pid_t) { return errno = EMFILE, -1; };
    kernel.begin();
    EXPECT(!sees(child, child.pid));
    kernel.calls.open = open_refused;  // nor is there any /proc
    kernel.begin();
    EXPECT(sees(child, child.pid));
    kernel.calls.open = open_maps;
    kernel.calls.read = [](int file, void* data, size_t size) -> ssize_t {
      if (file != maps_file) return os::kernel().read(file, data, size);
      maps_file = -1;
      return errno = refused, -1;
    };
    kernel.begin();
    EXPECT_EQ(sees(child, child.pid), error != ESRCH);
  }
}

}  // namespace
}  // namespace pgalloc::peer_process_test
