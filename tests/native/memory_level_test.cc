// One limit, read from files as the kernel writes them.

#include "guard/memory_level.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "native/support.h"

namespace pgalloc::memory_level_test {
namespace {

using Depth = MemoryLevel::Depth;
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
  EXPECT(level.has_value() && level->is_v1_group() && !level->events().open());
  const auto some = level->read(Depth::kUsage);
  EXPECT_EQ(some->limit, 4'000'000u);
  EXPECT_EQ(some->usage, 1'000'000u);
  EXPECT_EQ(some->reclaimable, 0u);
  EXPECT_EQ(some->available(), 3'000'000u);
  const auto all = level->read(Depth::kCache);
  EXPECT_EQ(all->reclaimable, 5'580u);  // used lately or not, but for what is unwritten
  EXPECT_EQ(all->cache, 5'700u);
  EXPECT_EQ(all->available(), 3'005'580u);
}

TEST(v2_takes_the_smaller_of_two_limits) {
  Folder folder;
  folder.write("memory.current", "10\n");
  folder.write("memory.max", "max\n");
  folder.write("memory.high", "500\n");
  folder.write("memory.events", "low 0\n");
  folder.write("memory.stat", "active_file 3\ninactive_file 4\nfile_dirty 5\nfile_writeback 6\n");
  const auto level = MemoryLevel::open({Kind::kV2, folder.path()});
  EXPECT(level.has_value() && !level->is_v1_group() && level->events().open());
  EXPECT_EQ(level->read(Depth::kCache)->limit, 500u);
  EXPECT_EQ(level->read(Depth::kCache)->reclaimable, 0u);  // more is unwritten than there is
  EXPECT_EQ(level->read(Depth::kCache)->cache, 7u);
  folder.write("memory.max", "400\n");
  EXPECT_EQ(level->read(Depth::kCache)->limit, 400u);
}

TEST(without_a_limit_nothing_else_is_read) {
  Folder folder;
  folder.write("memory.usage_in_bytes", "10\n");
  folder.write("memory.limit_in_bytes", "9223372036854771712\n");
  folder.write("memory.stat", "total_inactive_file 5\n");
  const auto level = MemoryLevel::open({Kind::kV1, folder.path()});
  EXPECT(!level->read(Depth::kCache)->limited());
  EXPECT_EQ(level->read(Depth::kCache)->cache, 0u);
}

TEST(without_its_stat_a_limit_still_counts) {
  Folder folder;
  folder.write("memory.usage_in_bytes", "10\n");
  folder.write("memory.limit_in_bytes", "8\n");
  const auto level = MemoryLevel::open({Kind::kV1, folder.path()});
  EXPECT_EQ(level->read(Depth::kCache)->available(), 0u);
  EXPECT_EQ(level->read(Depth::kCache)->cache, 0u);
}

TEST(no_machine_has_2_to_the_62_bytes) {
  Folder folder;
  folder.write("memory.usage_in_bytes", "10\n");
  const auto limit = [&](const char* text) {
    folder.write("memory.limit_in_bytes", text);
    return MemoryLevel::open({Kind::kV1, folder.path()})->read(Depth::kUsage)->limit;
  };
  EXPECT_EQ(limit("4611686018427387903\n"), 4'611'686'018'427'387'903u);
  EXPECT_EQ(limit("4611686018427387904\n"), UINT64_MAX);
  EXPECT_EQ(limit("18446744073709551616\n"), UINT64_MAX);
  EXPECT_EQ(limit("max\n"), UINT64_MAX);
  EXPECT_EQ(limit(""), UINT64_MAX);
}

TEST(the_machine_says_what_is_available_in_kib) {
  Folder folder;
  const auto read = [&](const std::string& text) {
    folder.write("meminfo", text);
    return MemoryLevel::open({Kind::kMachine, folder.path("meminfo")})->read(Depth::kCache);
  };
  const std::string most = "NotMemTotal: 9 kB\nMemTotal:   100 kB\nMemAvailable:\t1 kB\n";
  EXPECT(!read(most).has_value());  // not the kernel's way of writing it
  const auto level = read(most + "MemFree: 5 kB\nMemAvailable:  30 kB\nSwapFree: 7 kB\n");
  EXPECT_EQ(level->limit, 100u * 1024);
  EXPECT_EQ(level->usage, 70u * 1024);
  EXPECT_EQ(level->available(), 30u * 1024);
  EXPECT_EQ(level->swap_room, 7u * 1024);
  EXPECT_EQ(read("MemTotal: 100 kB\nMemAvailable: 101 kB\n")->usage, 0u);
  EXPECT_EQ(read("MemTotal: 100 kB\nMemAvailable: 101 kB\n")->swap_room, 0u);
  EXPECT(!read("MemTotal: 100 kB\n").has_value());
  EXPECT(!read("MemAvailable: 100 kB\n").has_value());
  EXPECT(!read("").has_value());
}

TEST(v2_half_of_the_slab_counts_as_free_and_v1_has_no_figure) {
  for (const bool v1 : {false, true}) {
    Folder folder;
    folder.write(v1 ? "memory.usage_in_bytes" : "memory.current", "1000\n");
    folder.write(v1 ? "memory.limit_in_bytes" : "memory.max", "2000\n");
    folder.write("memory.stat", "slab_reclaimable 100\nkernel_stack 5\nkernel 300\n");
    folder.write("memory.kmem.usage_in_bytes", "400\n");
    const auto level = MemoryLevel::open({v1 ? Kind::kV1 : Kind::kV2, folder.path()});
    const auto reading = level->read(Depth::kEverything);
    EXPECT_EQ(reading->reclaimable, v1 ? 0u : 50u);
    EXPECT_EQ(reading->cache, v1 ? 0u : 100u);
    EXPECT_EQ(reading->kernel, v1 ? 400u : 300u);
  }
}

TEST(v1_swap_is_what_memory_and_swap_together_leave) {
  Folder folder;
  folder.write("memory.usage_in_bytes", "1000\n");
  folder.write("memory.limit_in_bytes", "2000\n");
  const auto room = [&](const char* both, const char* used, const char* swappiness = "60\n") {
    folder.write("memory.memsw.limit_in_bytes", both);
    folder.write("memory.memsw.usage_in_bytes", used);
    folder.write("memory.swappiness", swappiness);
    return MemoryLevel::open({Kind::kV1, folder.path()})->read(Depth::kEverything)->swap_room;
  };
  EXPECT_EQ(room("9223372036854771712\n", "1000\n"), UINT64_MAX);
  EXPECT_EQ(room("2000\n", "1000\n"), 0u);
  EXPECT_EQ(room("2500\n", "1000\n"), 500u);
  EXPECT_EQ(room("2500\n", "1200\n"), 300u);
  EXPECT_EQ(room("2500\n", "1900\n"), 0u);
  EXPECT_EQ(room("2500\n", "1000\n", "0\n"), 0u);
}

TEST(v2_swap_has_a_limit_of_its_own) {
  Folder folder;
  folder.write("memory.current", "1000\n");
  folder.write("memory.max", "2000\n");
  const auto room = [&] {
    return MemoryLevel::open({Kind::kV2, folder.path()})->read(Depth::kEverything)->swap_room;
  };
  EXPECT_EQ(room(), UINT64_MAX);
  folder.write("memory.swap.max", "0\n");
  EXPECT_EQ(room(), 0u);
  folder.write("memory.swap.max", "100\n");
  folder.write("memory.swap.current", "30\n");
  EXPECT_EQ(room(), 70u);
  folder.write("memory.swap.max", "max\n");
  EXPECT_EQ(room(), UINT64_MAX);
}

TEST(a_limit_above_the_mount_is_that_of_the_hierarchy) {
  Folder folder;
  folder.write("memory.usage_in_bytes", "1000\n");
  folder.write("memory.stat", "hierarchical_memory_limit 3000\n");
  const auto level = MemoryLevel::open({Kind::kAboveV1, folder.path(), folder.path()});
  EXPECT_EQ(level->read(Depth::kUsage)->available(), 2000u);
}

TEST(a_level_that_can_not_be_read_any_more_is_gone) {
  Folder folder;
  folder.write("memory.current", "10\n");
  folder.write("memory.max", "20\n");
  const auto level = MemoryLevel::open({Kind::kV2, folder.path()});
  EXPECT_EQ(level->read(Depth::kUsage)->available(), 10u);
  folder.write("memory.current", "");
  EXPECT(!level->read(Depth::kUsage).has_value());
}

TEST(what_is_not_there_is_no_level) {
  const Folder folder;
  EXPECT(!MemoryLevel::open({Kind::kV1, folder.path()}).has_value());
  EXPECT(!MemoryLevel::open({Kind::kMachine, folder.path("meminfo")}).has_value());
}

}  // namespace
}  // namespace pgalloc::memory_level_test
