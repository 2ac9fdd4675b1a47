// The formats of two files of procfs. Where the group is found is tested in test_pressure_cgroup.py.

#include "guard/memory_group.h"

#include "native/support.h"

namespace pgalloc::memory_group_test {
namespace {

using Words = std::vector<std::string>;

TEST(optional_fields_of_a_mount_may_be_absent_or_many) {
  const auto mounts = parse_mountinfo(
      "1 2 0:1 / /a rw - cgroup2 src rw\n"
      "1 2 0:1 /r /b rw shared:1 master:2 unbindable - cgroup src rw,memory,cpu\n"
      "1 2 0:1 /r /b rw - cgroup\nnonsense\n\n");
  EXPECT_EQ(mounts.size(), 2u);
  EXPECT_EQ(mounts[0].root, "/");
  EXPECT_EQ(mounts[0].point, "/a");
  EXPECT_EQ(mounts[0].type, "cgroup2");
  EXPECT_EQ(mounts[0].options, (Words{"rw"}));
  EXPECT_EQ(mounts[1].root, "/r");
  EXPECT_EQ(mounts[1].options, (Words{"rw", "memory", "cpu"}));
}

TEST(octal_escapes_are_decoded_once) {
  const auto mounts =
      parse_mountinfo(R"(1 2 0:1 /\134040 /a\040b\011c\012d\134e\043f\4 rw - t s o)");
  EXPECT_EQ(mounts[0].root, R"(/\040)");
  EXPECT_EQ(mounts[0].point, "/a b\tc\nd\\e#f\\4");
}

TEST(a_membership_keeps_the_rest_of_the_line) {
  const auto found =
      parse_memberships("9:name=systemd:/a:b\n0::/x::y \nx\na:b:c\n4:memory\n:a:/\n");
  EXPECT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].controllers, (Words{"name=systemd"}));
  EXPECT_EQ(found[0].path, "/a:b");
  EXPECT(!found[0].is_v2());
  EXPECT_EQ(found[1].path, "/x::y ");
  EXPECT(found[1].is_v2());
}

}  // namespace
}  // namespace pgalloc::memory_group_test
