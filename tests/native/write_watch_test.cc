// What is heard of writes, in folders that only look like cgroups.

#include "guard/write_watch.h"

#include <poll.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "native/memory.h"
#include "native/support.h"

namespace pgalloc::write_watch_test {
namespace {

struct Scene {
  Scene() { make_group(""); }
  ~Scene() { std::filesystem::remove_all(folder); }

  std::string path_of(const std::string& group) const {
    return (group.empty() ? folder : folder / group).string();
  }
  void make_group(const std::string& group) const {
    std::filesystem::create_directories(path_of(group));
    for (const char* file : {"cgroup.procs", "memory.max"}) write(group, file, "");
  }
  void write(const std::string& group, const char* file, const std::string& text) const {
    std::ofstream(std::filesystem::path(path_of(group)) / file) << text;
  }
  void move_into(const std::string& group) const { write(group, "cgroup.procs", "1\n"); }
  bool heard() const {
    pollfd file{watch.events().fd(), POLLIN, 0};
    return ::poll(&file, 1, 0) == 1;
  }

  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("pgalloc_writes_" + std::to_string(::getpid()));
  WriteWatch watch = WriteWatch::open();
};

TEST(a_limit_that_is_written_is_heard_of) {
  Scene scene;
  scene.watch.add_file(scene.path_of("") + "/memory.max");
  EXPECT(!scene.heard());
  scene.write("", "memory.max", "4096\n");
  EXPECT(scene.heard());
  EXPECT(scene.watch.take());
  EXPECT(!scene.heard());
  EXPECT(!scene.watch.take());
}

TEST(a_move_is_heard_of_in_every_group_and_a_limit_of_another_group_is_not) {
  Scene scene;
  scene.make_group("a/b");
  scene.make_group("c");
  scene.watch.add_groups(scene.path_of(""));
  for (const char* group : {"", "a/b", "c"}) {
    scene.move_into(group);
    EXPECT(scene.watch.take());
  }
  scene.write("c", "memory.max", "4096\n");
  EXPECT(!scene.heard());
}

TEST(groups_that_are_made_later_are_watched) {
  Scene scene;
  scene.watch.add_groups(scene.path_of(""));
  scene.make_group("a/b/c");  // of which one event tells
  EXPECT(scene.watch.take());
  scene.move_into("a/b/c");
  EXPECT(scene.heard());
  EXPECT(scene.watch.take());
  scene.make_group("a/b/c/d");
  EXPECT(scene.watch.take());
  scene.move_into("a/b/c/d");
  EXPECT(scene.watch.take());
}

TEST(a_flood_is_taken_in_pieces) {
  Scene scene;
  scene.watch.add_file(scene.path_of("") + "/memory.max");
  scene.watch.add_groups(scene.path_of(""));
  for (int i = 0; i < 1000; ++i) {  // two by two: equal ones that follow each other are one
    scene.write("", "memory.max", "1\n");
    scene.move_into("");
  }
  EXPECT(scene.watch.take());
  EXPECT(scene.heard());
  while (scene.watch.take()) {
  }
  EXPECT(!scene.heard());
}

TEST(without_memory_it_misses_groups_and_goes_on) {
  Scene scene;
  scene.watch.add_groups(scene.path_of(""));
  scene.make_group("a_name_that_is_too_long_to_lie_in_the_string_itself");
  native_tests::all_fail = true;
  const bool taken = scene.watch.take();
  native_tests::all_fail = false;
  EXPECT(taken);
  scene.move_into("");
  EXPECT(scene.watch.take());
}

TEST(a_group_that_was_removed_makes_room_for_another) {
  Scene scene;
  scene.watch.add_groups(scene.path_of(""));
  for (size_t i = 0; i < 2 * WriteWatch::kGroupsMax; ++i) {
    scene.make_group("a");
    (void)scene.watch.take();
    scene.move_into("a");
    EXPECT(scene.watch.take());
    std::filesystem::remove_all(scene.path_of("a"));
    (void)scene.watch.take();
  }
}

TEST(more_groups_than_are_watched_are_no_error) {
  Scene scene;
  for (size_t i = 0; i < WriteWatch::kGroupsMax + 9; ++i) scene.make_group(std::to_string(i));
  scene.watch.add_groups(scene.path_of(""));
  scene.move_into("");
  EXPECT(scene.watch.take());
}

TEST(nothing_is_heard_where_there_is_nothing_to_hear) {
  Scene scene;
  WriteWatch deaf;
  deaf.add_file(scene.path_of("") + "/memory.max");
  deaf.add_groups(scene.path_of(""));
  scene.move_into("");
  EXPECT(!deaf.events().open());
  EXPECT(!deaf.take());
  scene.watch.add_groups(scene.path_of("none"));
  scene.watch.add_file(scene.path_of("none"));
  EXPECT(!scene.watch.take());
}

}  // namespace
}  // namespace pgalloc::write_watch_test
