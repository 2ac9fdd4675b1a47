// A socket behind a descriptor, and the file that must not stay.

#include "sharing/door.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "native/sharing.h"
#include "sharing/brief_files.h"

namespace pgalloc::door_test {
namespace {

using native_tests::descriptor_count;
using native_tests::FakeKernel;

std::string name;  // of the file
int listens = 0;
int listen_at_noted(const char* path, size_t size) {
  ++listens;
  name.assign(path, size);
  return os::kernel().listen_at(path, size);
}
int refused = 0;
int unlink_refused(const char*) { return errno = refused, -1; }
int listen_at_refused(const char*, size_t) { return errno = refused, -1; }
int open_refused(const char*, int, mode_t) { return errno = refused, -1; }
int fstat_refused(int, struct stat*) { return errno = refused, -1; }
ssize_t getrandom_refused(void*, size_t, unsigned) { return errno = refused, -1; }

bool is_there(const std::string& path) {
  struct stat status{};
  return ::lstat(path.c_str(), &status) == 0;
}
bool leads_in(const Door& door) {
  const os::Descriptor socket(os::kernel().connect_to(door.path().data(), door.path().size()));
  return socket.open();
}

TEST(it_leads_in_until_it_is_closed_and_its_file_is_gone_at_once) {
  FakeKernel kernel;
  kernel.calls.listen_at = listen_at_noted;
  kernel.begin();
  const size_t before = descriptor_count();
  Door door;
  EXPECT(door.path().empty());
  EXPECT(door.fd() < 0);
  EXPECT(!door.intact());
  {
    const Endpoint socket = door.open();
    EXPECT(socket.open());
    EXPECT(name.starts_with("/tmp/.pgalloc-"));
    EXPECT(!is_there(name));
    EXPECT(door.intact());
    EXPECT_EQ(door.path(),
              "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(door.fd()));
    EXPECT(leads_in(door));
    door.close();
    EXPECT(door.path().empty());
    EXPECT(door.fd() < 0);
  }
  EXPECT_EQ(descriptor_count(), before);
}

TEST(each_has_a_name_of_its_own) {
  FakeKernel kernel;
  kernel.calls.listen_at = listen_at_noted;
  kernel.begin();
  Door one;
  Door other;
  const Endpoint first = one.open();
  const std::string first_name = name;
  const Endpoint second = other.open();
  EXPECT(name != first_name);
  EXPECT_EQ(name.size(), first_name.size());
  EXPECT(leads_in(one) && leads_in(other));
  other.close();
  EXPECT(leads_in(one));
}

TEST(a_file_that_could_not_be_unlinked_is_unlinked_before_the_next) {
  FakeKernel kernel;
  kernel.calls.listen_at = listen_at_noted;
  kernel.calls.unlink = unlink_refused;
  refused = EACCES;
  kernel.begin();
  Door door;
  EXPECT(door.open().open());
  const std::string first = name;
  EXPECT(is_there(first));
  EXPECT(leads_in(door) == false);  // nothing listens any more
  door.close();
  EXPECT(is_there(first));
  EXPECT(!door.open().open());
  EXPECT(door.path().empty());
  EXPECT_EQ(listens, 1);  // no second file
  kernel.calls.unlink = os::kernel().unlink;
  {
    const Endpoint socket = door.open();
    EXPECT(socket.open());
    EXPECT(!is_there(first));
    EXPECT(!is_there(name));
    EXPECT_EQ(listens, 2);
    door.close();
  }
  kernel.calls.unlink = unlink_refused;
  EXPECT(door.open().open());
  EXPECT(is_there(name));
  kernel.calls.unlink = os::kernel().unlink;
  door.close();
  EXPECT(!is_there(name));
}

TEST(a_file_that_a_killed_process_has_left_goes_when_another_opens_its_door) {
  const std::string left = "/tmp/" + *name_of_brief_file();
  ::close(os::kernel().listen_at(left.data(), left.size()));
  const timespec then{::time(nullptr) - 100, 0};
  const timespec times[2] = {then, then};
  EXPECT_EQ(::utimensat(AT_FDCWD, left.c_str(), times, AT_SYMLINK_NOFOLLOW), 0);
  Door door;
  // Others may have left more than are removed at once.
  for (int i = 0; i < 200 && is_there(left); ++i) {
    EXPECT(door.open().open());
    door.close();
  }
  EXPECT(!is_there(left));
}

TEST(a_file_that_is_gone_needs_no_unlinking) {
  FakeKernel kernel;
  kernel.calls.listen_at = listen_at_noted;
  kernel.calls.unlink = unlink_refused;
  refused = ENOENT;
  kernel.begin();
  Door door;
  EXPECT(door.open().open());
  EXPECT_EQ(::unlink(name.c_str()), 0);
  door.close();
  EXPECT(door.open().open());
  EXPECT_EQ(listens, 2);
  EXPECT_EQ(::unlink(name.c_str()), 0);
}

TEST(what_fails_leaves_neither_a_file_nor_a_descriptor) {
  refused = ENOMEM;
  for (int part = 0; part < 4; ++part) {
    FakeKernel kernel;
    kernel.calls.listen_at = part == 1 ? listen_at_refused : listen_at_noted;
    if (part == 0) kernel.calls.getrandom = getrandom_refused;
    if (part == 2) kernel.calls.open = open_refused;
    if (part == 3) kernel.calls.fstat = fstat_refused;
    kernel.begin();
    Door door;
    name.clear();
    const size_t before = descriptor_count();
    EXPECT(!door.open().open());
    EXPECT(door.path().empty());
    EXPECT(!door.intact());
    EXPECT_EQ(descriptor_count(), before);
    EXPECT_EQ(name.empty(), part < 2);
    EXPECT(name.empty() || !is_there(name));
  }
}

TEST(a_descriptor_that_was_closed_from_outside_is_not_intact) {
  Door door;
  const Endpoint socket = door.open();
  ::close(door.fd());
  EXPECT(!door.intact());
  door.close();
  EXPECT(door.open().open());
}

}  // namespace
}  // namespace pgalloc::door_test
