// Servers at paths: which one serves, and which files go.

#include "sharing/server.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <array>

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
    const Descriptor socket(os::kernel().connect_to(path.data(), path.size()));
    return socket.open();
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
  EXPECT(scene.serve().ok());
  EXPECT_EQ(left, -2);  // three are refused, one locks, one unlocks
  refused = ENOLCK;
  left = 3;
  EXPECT(scene.serve().ok());
  EXPECT_EQ(left, 1);
}

long sleeps_of_thread() {
  rusage usage{};
  EXPECT_EQ(::getrusage(RUSAGE_THREAD, &usage), 0);
  return usage.ru_nvcsw;
}

TEST(a_folder_that_stays_locked_is_asked_2000_times_between_sleeps) {
  const Scene scene;
  EXPECT(Broker::instance().address().ok());
  FakeKernel kernel;
  kernel.calls.flock = flock_refused;
  kernel.begin();
  refused = EWOULDBLOCK;
  left = INT_MAX;
  const long before = sleeps_of_thread();
  EXPECT(scene.serve().ok());
  EXPECT(sleeps_of_thread() - before >= 1000);  // some end before they have begun
  EXPECT_EQ(flocks, 2001);                      // the last one unlocks
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
