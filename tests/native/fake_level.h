// Purpose: a folder that looks like a v2 memory cgroup to the guard of this process, which watches nothing else
// meanwhile.
//
// Thread safety: one at a time.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include "guard/guard.h"

namespace pgalloc::native_tests {

class FakeLevel {
 public:
  FakeLevel(uint64_t limit, uint64_t usage) {
    std::filesystem::create_directory(folder_);
    write("memory.max", std::to_string(limit) + "\n");
    write("memory.high", "max\n");
    write("memory.stat", "inactive_file 0\n");
    write("memory.events", "");
    use(usage);
    Guard::instance().park();
    Guard::instance().configure({{LevelFiles::Kind::kV2, folder_}});
  }
  ~FakeLevel() {
    Guard::instance().configure({});
    Guard::instance().resume();
    std::filesystem::remove_all(folder_);
  }
  FakeLevel(const FakeLevel&) = delete;
  FakeLevel& operator=(const FakeLevel&) = delete;

  void use(uint64_t bytes) const { write("memory.current", std::to_string(bytes) + "\n"); }

 private:
  void write(const char* name, const std::string& text) const {
    std::ofstream(folder_ / name) << text;
  }

  const std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / ("pgalloc_level_" + std::to_string(::getpid()));
};

}  // namespace pgalloc::native_tests
