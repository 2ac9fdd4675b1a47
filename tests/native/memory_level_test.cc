// One limit, read from files as the kernel writes them.

#include "guard/memory_level.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "native/support.h"

namespace pgalloc::memory_level_test {
namespace {

using Kind = LevelFiles::Kind;

// A folder with files, which goes at the end.
class Folder {
 public:
  Folder() { std::filesystem::create_directory(path_); }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  void write(const char* name, const std::string& text) { std::ofstream(path_ / name) << text; }
  std::string path(const char* name = "") const { return path_ / name; }

 private:
  const std::filesystem::path path_ =
      std::filesystem::temp_directory_path() / ("pgalloc_level_" + std::to_string(::getpid()));
};

TEST(v1_counts_the_whole_subtree) {
  Folder folder;
  folder.write("memory.usage_in_bytes", "1000000\n");
  folder.write("memory.limit_in_bytes", "4000000\n");
  folder.write("memory.stat",
               "inactive_file 1\nactive_file 2\ntotal_dirty 100\ntotal_writeback 20\n"
               "total_inactive_file 5000\ntotal_active_file 700\n");
  const auto level = MemoryLevel::open({Kind::kV1, folder.path()});
  EXPECT(level.has_value() && level->has_usage_threshold() && level->events_fd() < 0);
  const auto some = level->read(/*all=*/false);
  EXPECT_EQ(some->limit, 4'000'000u);
  EXPECT_EQ(some->usage, 1'000'000u);
  EXPECT_EQ(some->reclaimable, 0u);
  EXPECT_EQ(some->available(), 3'000'000u);
  const auto all = level->read(/*all=*/true);
  EXPECT_EQ(all->reclaimable, 4'880u);
  EXPECT_EQ(all->file_cache, 5'700u);
  EXPECT_EQ(all->available(), 3'004'880u);
}

TEST(v2_takes_the_smaller_of_two_limits) {
  Folder folder;
  folder.write("memory.current", "10\n");
  folder.write("memory.max", "max\n");
  folder.write("memory.high", "500\n");
  folder.write("memory.events", "low 0\n");
  folder.write("memory.stat", "active_file 3\ninactive_file 4\nfile_dirty 5\nfile_writeback 6\n");
  const auto level = MemoryLevel::open({Kind::kV2, folder.path()});
  EXPECT(level.has_value() && !level->has_usage_threshold() && level->events_fd() >= 0);
  EXPECT_EQ(level->read(true)->limit, 500u);
  EXPECT_EQ(level->read(true)->reclaimable, 0u);  // more is unwritten than inactive
  EXPECT_EQ(level->read(true)->file_cache, 7u);
  folder.write("memory.max", "400\n");
  EXPECT_EQ(level->read(true)->limit, 400u);
}

TEST(without_a_limit_nothing_else_is_read) {
  Folder folder;
  folder.write("memory.usage_in_bytes", "10\n");
  folder.write("memory.limit_in_bytes", "9223372036854771712\n");
  folder.write("memory.stat", "total_inactive_file 5\n");
  const auto level = MemoryLevel::open({Kind::kV1, folder.path()});
  EXPECT(!level->read(true)->limited());
  EXPECT_EQ(level->read(true)->file_cache, 0u);
}

TEST(without_its_stat_a_limit_still_counts) {
  Folder folder;
  folder.write("memory.usage_in_bytes", "10\n");
  folder.write("memory.limit_in_bytes", "8\n");
  const auto level = MemoryLevel::open({Kind::kV1, folder.path()});
  EXPECT_EQ(level->read(true)->available(), 0u);
  EXPECT_EQ(level->read(true)->file_cache, 0u);
}

TEST(what_is_not_there_is_no_level) {
  const Folder folder;
  EXPECT(!MemoryLevel::open({Kind::kV1, folder.path()}).has_value());
  EXPECT(!MemoryLevel::open({Kind::kMachine, folder.path("meminfo")}).has_value());
}

}  // namespace
}  // namespace pgalloc::memory_level_test
