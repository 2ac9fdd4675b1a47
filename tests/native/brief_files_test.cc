// Sockets' files that are there for a moment only: their names, and which go that were left.

#include "sharing/brief_files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <set>

#include "native/sharing.h"

namespace pgalloc::brief_files_test {
namespace {

using native_tests::descriptor_count;
using native_tests::FakeKernel;

struct Scene {
  Scene() {
    char name[] = "/tmp/pgalloc_brief_XXXXXX";
    folder = ::mkdtemp(name);
  }
  ~Scene() { std::filesystem::remove_all(folder); }
  // A socket that was left so long ago.
  std::string leave(const std::string& name, int age_s) const {
    std::string path = folder + "/" + name;
    ::close(os::kernel().listen_at(path.data(), path.size()));
    make_older(path, age_s);
    return path;
  }
  std::string leave(int age_s) const { return leave(*name_of_brief_file(), age_s); }
  static void make_older(const std::string& path, int age_s) {
    const timespec then{::time(nullptr) - age_s, 0};
    const timespec times[2] = {then, then};
    EXPECT_EQ(::utimensat(AT_FDCWD, path.c_str(), times, AT_SYMLINK_NOFOLLOW), 0);
  }
  size_t count() const {
    const std::filesystem::directory_iterator files(folder);
    return static_cast<size_t>(std::distance(begin(files), end(files)));
  }
  bool remains(const std::string& path) const {
    remove_left_files(folder);
    struct stat status{};
    return ::lstat(path.c_str(), &status) == 0;
  }

  std::string folder;
};

int refused = 0;
ssize_t getrandom_refused(void*, size_t, unsigned) { return errno = refused, -1; }
int open_refused(const char*, int, mode_t) { return errno = refused, -1; }
int lstat_refused(const char*, struct stat*) { return errno = refused, -1; }
int unlink_refused(const char*) { return errno = refused, -1; }
ssize_t getdents_refused(int, void*, size_t) { return errno = refused, -1; }
int lstat_of_another_user(const char* path, struct stat* out) {
  const int result = os::kernel().lstat(path, out);
  out->st_uid = ::geteuid() + 1;
  return result;
}
int portions = 0;
ssize_t getdents_without_end(int fd, void* entries, size_t size) {
  ++portions;
  EXPECT_EQ(os::kernel().lseek(fd, 0, SEEK_SET), 0);
  return os::kernel().getdents(fd, entries, size);
}

TEST(no_two_names_are_alike) {
  std::set<std::string> names;
  for (int i = 0; i < 100; ++i) names.insert(*name_of_brief_file());
  EXPECT_EQ(names.size(), 100u);
  for (const std::string& name : names) {
    EXPECT(name.starts_with(".pgalloc-"));
    EXPECT_EQ(name.size(), 25u);
  }
  FakeKernel kernel;
  kernel.calls.getrandom = getrandom_refused;
  refused = EIO;
  kernel.begin();
  EXPECT_EQ(name_of_brief_file().status().error_number(), EIO);
}

TEST(what_is_older_than_a_minute_goes) {
  const Scene scene;
  const std::string young = scene.leave(0);
  const std::string used = scene.leave(50);
  const std::string old = scene.leave(70);
  const std::string ancient = scene.leave(1 << 20);
  const size_t before = descriptor_count();
  EXPECT(!scene.remains(old));
  EXPECT(!scene.remains(ancient));
  EXPECT(scene.remains(young));
  EXPECT(scene.remains(used));
  EXPECT_EQ(scene.count(), 2u);
  EXPECT_EQ(descriptor_count(), before);
}

TEST(other_files_stay) {
  const Scene scene;
  for (const char* name :
       {".pgalloc-0123456789abcde", ".pgalloc-0123456789abcdeF", ".pgalloc-0123456789abcdef0",
        ".pgalloc-0123456789abcde.", "pgalloc-0123456789abcdef", ".pgalloc-mine", ".pgalloc-"}) {
    EXPECT(scene.remains(scene.leave(name, 1000)));
  }
  const std::string file = scene.folder + "/.pgalloc-0123456789abcdef";
  ::close(::open(file.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  Scene::make_older(file, 1000);
  EXPECT(scene.remains(file));
  const std::string others = scene.leave(1000);
  {
    FakeKernel kernel;
    kernel.calls.lstat = lstat_of_another_user;
    kernel.begin();
    EXPECT(scene.remains(others));
  }
  EXPECT(!scene.remains(others));
}

TEST(what_is_done_at_once_is_bounded) {
  const Scene scene;
  for (int i = 0; i < 70; ++i) (void)scene.leave(1000);
  remove_left_files(scene.folder);
  EXPECT_EQ(scene.count(), 6u);
  FakeKernel kernel;
  kernel.calls.getdents = getdents_without_end;
  kernel.begin();
  remove_left_files(scene.folder);
  EXPECT_EQ(scene.count(), 0u);
  EXPECT_EQ(portions, 64);
}

TEST(what_fails_is_left_to_the_next) {
  const Scene scene;
  const std::string old = scene.leave(1000);
  const size_t before = descriptor_count();
  refused = EACCES;
  for (int part = 0; part < 4; ++part) {
    FakeKernel kernel;
    if (part == 0) kernel.calls.open = open_refused;
    if (part == 1) kernel.calls.getdents = getdents_refused;
    if (part == 2) kernel.calls.lstat = lstat_refused;
    if (part == 3) kernel.calls.unlink = unlink_refused;
    kernel.begin();
    EXPECT(scene.remains(old));
    EXPECT_EQ(descriptor_count(), before);
  }
  remove_left_files(scene.folder + "/missing");
  EXPECT(!scene.remains(old));
}

}  // namespace
}  // namespace pgalloc::brief_files_test
