// Which switch decides on huge pages of shmem, and what it says.

#include "backing/huge_switch.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "base/units.h"
#include "native/test.h"

namespace pgalloc::huge_switch_test {
namespace {

namespace fs = std::filesystem;

class Switches {
 public:
  Switches() { fs::create_directories(own().parent_path()); }
  ~Switches() { fs::remove_all(folder_); }
  Switches(const Switches&) = delete;
  Switches& operator=(const Switches&) = delete;

  HugeSwitch at(const std::string& of_all, const std::string& own_choice) {
    write(fs::path(folder_) / "shmem_enabled", of_all);
    write(own(), own_choice);
    return huge_switch_of_shmem(folder_);
  }
  fs::path own() const {
    const std::string size = std::to_string(huge_page_size() / 1024);
    return fs::path(folder_) / ("hugepages-" + size + "kB") / "shmem_enabled";
  }
  const std::string& folder() const { return folder_; }

 private:
  static void write(const fs::path& path, const std::string& choice) {
    if (choice.empty()) {
      fs::remove(path);
    } else {
      std::ofstream(path) << "first [" << choice << "] last\n";
    }
  }

  const std::string folder_ =
      (fs::temp_directory_path() / ("pgalloc-switches-" + std::to_string(::getpid()))).string();
};

TEST(the_switch_for_all_sizes_decides_where_that_of_the_size_inherits) {
  Switches switches;
  for (const std::string own : {"", "inherit"}) {
    for (const std::string choice : {"always", "within_size", "advise", "force"}) {
      const HugeSwitch decides = switches.at(choice, own);
      EXPECT(decides.gives);
      EXPECT_EQ(decides.choice, choice);
      EXPECT_EQ(decides.path, switches.folder() + "/shmem_enabled");
    }
    EXPECT(!switches.at("never", own).gives);
  }
}

TEST(the_switch_of_the_size_decides_otherwise_but_deny_is_for_all) {
  Switches switches;
  EXPECT(switches.at("never", "advise").gives);
  const HugeSwitch decides = switches.at("advise", "never");
  EXPECT(!decides.gives);
  EXPECT_EQ(decides.path, switches.own().string());
  EXPECT(!switches.at("deny", "always").gives);
  EXPECT_EQ(switches.at("deny", "always").choice, "deny");
}

TEST(where_there_are_no_switches_there_are_no_huge_pages) {
  Switches switches;
  const HugeSwitch decides = switches.at("", "");
  EXPECT(!decides.gives);
  EXPECT(decides.choice.empty());
}

}  // namespace
}  // namespace pgalloc::huge_switch_test
