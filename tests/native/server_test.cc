// Servers at paths: which one serves, and which files go.

#include "sharing/server.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <array>
#include <utility>

#include "native/sharing.h"
#include "sharing/broker.h"
#include "sharing/forks.h"

namespace pgalloc::server_test {
namespace {

using native_tests::descriptor_count;
using native_tests::FakeKernel;

// A folder, and a path in it.
struct Scene {
  Scene() {
    char name[] = "/tmp/pgalloc_server_XXXXXX";
    folder = ::mkdtemp(name);
    path = folder + "/socket";
  }
  ~Scene() { std::filesystem::remove_all(folder); }
  bool is_there() const {
    struct stat status{};
    return ::lstat(path.c_str(), &status) == 0;
  }
  bool is_served() const {
    const os::Descriptor socket(os::kernel().connect_to(path.data(), path.size()));
    return socket.open();
  }
  size_t file_count() const {
    const std::filesystem::directory_iterator files(folder);
    return static_cast<size_t>(std::distance(begin(files), end(files)));
  }
  Result<std::unique_ptr<Server>> serve() const { return Server::create(path, {}); }

  std::string folder;
  std::string path;
};

int refused = 0;
int left = 0;  // so many calls fail
int lstat_refused(const char* path, struct stat* out) {
  return left-- > 0 ? (errno = refused, -1) : os::kernel().lstat(path, out);
}
int unlink_refused(const char* path) {
  return left-- > 0 ? (errno = refused, -1) : os::kernel().unlink(path);
}
int listen_at_refused(const char*, size_t) { return errno = refused, -1; }
int fstat_refused(int, struct stat*) { return errno = refused, -1; }
int connect_to_refused(const char*, size_t) { return errno = refused, -1; }
int flocks = 0;
int flock_refused(int fd, int operation) {
  ++flocks;
  return left-- > 0 ? (errno = refused, -1) : os::kernel().flock(fd, operation);
}

TEST(a_path_is_served_until_the_server_closes) {
  const Scene scene;
  const auto server = scene.serve();
  EXPECT(server.ok());
  EXPECT(!(*server)->closed());
  EXPECT(scene.is_served());
  struct stat status{};
  EXPECT_EQ(::lstat(scene.path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777u, 0600u);
  const size_t listeners = Broker::instance().figures().listeners;
  (*server)->close();
  EXPECT((*server)->closed());
  EXPECT(!scene.is_there());
  EXPECT_EQ(Broker::instance().figures().listeners, listeners - 1);
  const auto other = scene.serve();
  (*server)->close();  // once
  EXPECT(scene.is_served());
}

TEST(a_path_has_107_bytes_at_most) {
  Scene scene;
  const std::string start = scene.folder + "/";
  scene.path = start + std::string(107 - start.size(), 'x');
  EXPECT(scene.serve().ok());
  scene.path += "x";
  EXPECT_EQ(scene.serve().status().code(), ErrorCode::kOption);
  EXPECT(!scene.is_there());
}

TEST(one_of_two_serves) {
  const Scene scene;
  const auto first = scene.serve();
  const auto second = scene.serve();
  EXPECT_EQ(second.status().error_number(), EADDRINUSE);
  EXPECT(scene.is_served());
}

TEST(what_a_dead_process_left_behind_is_replaced_and_nothing_else) {
  const Scene scene;
  ::close(os::kernel().listen_at(scene.path.data(), scene.path.size()));
  EXPECT(scene.is_there());
  EXPECT(scene.serve().ok());
  EXPECT(!scene.is_there());
  ::close(::open(scene.path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  EXPECT_EQ(scene.serve().status().error_number(), EADDRINUSE);
  EXPECT(scene.is_there());
}

TEST(a_server_that_cannot_be_asked_is_not_replaced) {
  const Scene scene;
  ::close(os::kernel().listen_at(scene.path.data(), scene.path.size()));
  for (const int error : {EAGAIN, EACCES, EMFILE, EPROTOTYPE}) {
    FakeKernel kernel;
    kernel.calls.connect_to = connect_to_refused;
    refused = error;
    kernel.begin();
    EXPECT_EQ(scene.serve().status().error_number(), EADDRINUSE);
    EXPECT(scene.is_there());
  }
}

TEST(the_file_of_another_server_stays) {
  const Scene scene;
  const auto first = scene.serve();
  EXPECT_EQ(::unlink(scene.path.c_str()), 0);
  const auto second = scene.serve();
  EXPECT(second.ok());
  (*first)->close();
  EXPECT(scene.is_served());
  (*second)->close();
  EXPECT(!scene.is_there());
}

TEST(what_fails_leaves_neither_a_file_nor_a_descriptor) {
  const Scene scene;
  EXPECT(Broker::instance().address().ok());  // which stays
  const size_t before = descriptor_count();
  refused = EIO;
  for (int part = 0; part < 3; ++part) {
    FakeKernel kernel;
    left = 1;
    if (part == 0) kernel.calls.lstat = lstat_refused;
    if (part == 1) kernel.calls.listen_at = listen_at_refused;
    if (part == 2) kernel.calls.fstat = fstat_refused;
    kernel.begin();
    const auto server = scene.serve();
    EXPECT_EQ(server.status().error_number(), EIO);
    os::use(os::kernel());
    EXPECT(!scene.is_there());
    EXPECT_EQ(descriptor_count(), before);
  }
  EXPECT(scene.serve().ok());
}

TEST(to_remove_the_file_is_tried_three_times) {
  refused = EIO;
  for (const bool looks : {false, true}) {
    for (const int failures : {2, 3}) {
      const Scene scene;
      const auto server = scene.serve();
      FakeKernel kernel;
      if (looks) {
        kernel.calls.lstat = lstat_refused;
      } else {
        kernel.calls.unlink = unlink_refused;
      }
      left = failures;
      kernel.begin();
      (*server)->close();
      EXPECT_EQ(scene.is_there(), failures == 3);
      EXPECT(left <= 0);
    }
  }
  const Scene scene;
  const auto server = scene.serve();
  FakeKernel kernel;
  kernel.calls.lstat = lstat_refused;
  refused = ENOENT;
  left = 3;
  kernel.begin();
  (*server)->close();
  EXPECT_EQ(left, 2);  // it is gone: no more is tried
}

TEST(folders_that_others_lock_are_waited_for_and_those_without_locks_are_not) {
  const Scene scene;
  FakeKernel kernel;
  kernel.calls.flock = flock_refused;
  kernel.begin();
  refused = EWOULDBLOCK;
  left = 3;
  {
    const auto server = scene.serve();
    EXPECT(server.ok());
    EXPECT_EQ(left, -2);  // three are refused, one locks, one unlocks
  }
  EXPECT_EQ(left, -4);
  refused = ENOLCK;
  left = 3;
  {
    const auto server = scene.serve();
    EXPECT(server.ok());
    EXPECT_EQ(left, 2);
  }
  EXPECT_EQ(left, 1);
}

TEST(a_folder_that_stays_locked_is_waited_for_for_two_seconds) {
  const Scene scene;
  EXPECT(Broker::instance().address().ok());
  ::close(os::kernel().listen_at(scene.path.data(), scene.path.size()));
  FakeKernel kernel;
  kernel.calls.flock = flock_refused;
  kernel.calls.poll = native_tests::poll_without_waiting;
  kernel.begin();
  refused = EWOULDBLOCK;
  left = INT_MAX;
  native_tests::milliseconds_waited = 0;
  const auto server = scene.serve();
  EXPECT_EQ(native_tests::milliseconds_waited, 2000);
  EXPECT_EQ(flocks, 2000);
  // It may be that the other process is about to listen there.
  EXPECT_EQ(server.status().error_number(), EADDRINUSE);
  EXPECT(server.status().describe().find("locked by another process") != std::string::npos);
  EXPECT(scene.is_there());
}

TEST(without_the_lock_a_free_path_is_served_and_no_other) {
  const Scene scene;
  EXPECT(Broker::instance().address().ok());
  FakeKernel kernel;
  kernel.calls.flock = flock_refused;
  refused = ENOLCK;
  left = INT_MAX;
  kernel.begin();
  const size_t listeners = Broker::instance().figures().listeners;
  {
    const auto server = scene.serve();
    EXPECT(server.ok());
    EXPECT(scene.is_served());
    struct stat status{};
    EXPECT_EQ(::lstat(scene.path.c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777u, 0600u);
    EXPECT_EQ(scene.file_count(), 1u);
    const auto second = scene.serve();
    EXPECT_EQ(second.status().describe(), "bind: Address already in use");
    kernel.calls.flock = os::kernel().flock;
    EXPECT_EQ(scene.serve().status().error_number(), EADDRINUSE);
    kernel.calls.flock = flock_refused;
    EXPECT(scene.is_served());
  }
  EXPECT_EQ(scene.file_count(), 0u);
  EXPECT_EQ(Broker::instance().figures().listeners, listeners);
  ::close(os::kernel().listen_at(scene.path.data(), scene.path.size()));
  const auto server = scene.serve();
  EXPECT_EQ(server.status().error_number(), EADDRINUSE);
  EXPECT(server.status().describe().find("cannot be locked") != std::string::npos);
  EXPECT(scene.is_there());
  EXPECT_EQ(scene.file_count(), 1u);
}

TEST(without_the_lock_the_path_may_be_as_long_as_ever) {
  Scene scene;
  scene.path = scene.folder + "/" + std::string(106 - scene.folder.size(), 'x');
  FakeKernel kernel;
  kernel.calls.flock = flock_refused;
  refused = ENOLCK;
  left = INT_MAX;
  kernel.begin();
  const auto server = scene.serve();
  EXPECT(server.ok());
  EXPECT(scene.is_served());
}

const Scene* raced = nullptr;
std::unique_ptr<Server> other;  // of the process that comes in between
int others_error = 0;
void come_in_between() {
  if (raced == nullptr) return;
  auto made = std::exchange(raced, nullptr)->serve();
  if (made.ok()) {
    other = std::move(*made);
  } else {
    others_error = made.status().error_number();
  }
}
int link_descriptor_late(int fd, const char* path) {
  left = 0;  // that one gets the lock
  come_in_between();
  return os::kernel().link_descriptor(fd, path);
}
int unlink_late(const char* path) {
  come_in_between();
  return os::kernel().unlink(path);
}

TEST(one_that_has_the_lock_comes_before_one_that_has_not) {
  const Scene scene;
  EXPECT(Broker::instance().address().ok());
  raced = &scene;
  FakeKernel kernel;
  kernel.calls.flock = flock_refused;
  kernel.calls.link_descriptor = link_descriptor_late;
  refused = ENOLCK;
  left = INT_MAX;
  kernel.begin();
  EXPECT_EQ(scene.serve().status().error_number(), EADDRINUSE);
  EXPECT(other != nullptr);
  EXPECT(scene.is_served());
  EXPECT_EQ(scene.file_count(), 1u);
  other->close();
  EXPECT_EQ(scene.file_count(), 0u);
}

TEST(the_socket_of_the_next_server_stays_when_this_one_is_slow_to_close) {
  for (const bool locks : {true, false}) {
    const Scene scene;
    const auto server = scene.serve();
    others_error = 0;
    raced = &scene;
    FakeKernel kernel;
    kernel.calls.unlink = unlink_late;
    kernel.calls.poll = native_tests::poll_without_waiting;
    if (!locks) kernel.calls.flock = flock_refused;
    refused = ENOLCK;
    left = INT_MAX;
    kernel.begin();
    (*server)->close();
    EXPECT_EQ(others_error, EADDRINUSE);  // it is told, since this one listens till the end
    EXPECT(other == nullptr);
    EXPECT(!scene.is_there());
    EXPECT(scene.serve().ok());
  }
}

int listener = -1;
int listen_at_noted(const char* name, size_t size) {
  return listener = os::kernel().listen_at(name, size);
}

TEST(a_server_whose_socket_was_closed_removes_the_file_under_the_lock) {
  const Scene scene;
  EXPECT(Broker::instance().address().ok());
  for (const bool locks : {false, true}) {
    std::filesystem::remove(scene.path);
    FakeKernel kernel;
    kernel.calls.listen_at = listen_at_noted;
    kernel.begin();
    const auto server = scene.serve();
    ::close(listener);
    if (!locks) kernel.calls.flock = flock_refused;
    refused = ENOLCK;
    left = INT_MAX;
    (*server)->close();
    EXPECT_EQ(scene.is_there(), !locks);
  }
}

int open_path_refused(const char* path, int flags, mode_t mode) {
  return (flags & O_PATH) != 0 && left-- == 0 ? (errno = refused, -1)
                                              : os::kernel().open(path, flags, mode);
}
ssize_t getrandom_refused(void*, size_t, unsigned) { return errno = refused, -1; }
int link_descriptor_refused(int, const char*) { return errno = refused, -1; }
int flock_unknown(int, int) { return errno = ENOLCK, -1; }

TEST(what_fails_without_the_lock_leaves_nothing_either) {
  const Scene scene;
  EXPECT(Broker::instance().address().ok());
  const size_t before = descriptor_count();
  const size_t listeners = Broker::instance().figures().listeners;
  refused = EIO;
  for (int part = 0; part < 7; ++part) {
    FakeKernel kernel;
    kernel.calls.flock = flock_unknown;
    left = part == 0 ? 0 : 1;
    if (part < 2) kernel.calls.open = open_path_refused;
    if (part == 2) kernel.calls.getrandom = getrandom_refused;
    if (part == 3) kernel.calls.listen_at = listen_at_refused;
    if (part == 4) kernel.calls.lstat = lstat_refused;
    if (part == 5) kernel.calls.link_descriptor = link_descriptor_refused;
    if (part == 6) kernel.calls.fstat = fstat_refused;
    kernel.begin();
    EXPECT_EQ(scene.serve().status().error_number(), EIO);
    os::use(os::kernel());
    EXPECT_EQ(scene.file_count(), 0u);
    EXPECT_EQ(descriptor_count(), before);
    EXPECT_EQ(Broker::instance().figures().listeners, listeners);
  }
}

TEST(the_descriptor_of_a_folder_may_be_0) {
  const Scene scene;
  EXPECT(Broker::instance().address().ok());
  ::close(0);
  const auto server = scene.serve();
  EXPECT(server.ok());
  EXPECT(::fcntl(0, F_GETFD) < 0);  // the folder had it
}

TEST(in_a_forked_child_the_file_is_the_parents) {
  Forks::install();
  const Scene scene;
  const auto server = scene.serve();
  const pid_t child = ::fork();
  if (child == 0) {
    (*server)->close();
    ::_exit((*server)->closed() ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT(scene.is_served());
}

}  // namespace
}  // namespace pgalloc::server_test
