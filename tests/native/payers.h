// Purpose: a folder that looks like /proc to payer_of().
//
// Thread safety: one at a time.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "sharing/payer.h"

namespace pgalloc::native_tests {

class Payers {
 public:
  // What /proc/self/cgroup says.
  explicit Payers(const std::string& ours) {
    write("self", ours);
    testing::look_for_payers_in(folder_.c_str());
  }
  ~Payers() {
    testing::look_for_payers_in("/proc");
    std::filesystem::remove_all(folder_);
  }
  Payers(const Payers&) = delete;
  Payers& operator=(const Payers&) = delete;

  void write(pid_t pid, const std::string& text) const { write(std::to_string(pid), text); }

 private:
  void write(const std::string& process, const std::string& text) const {
    std::filesystem::create_directories(folder_ / process);
    std::ofstream(folder_ / process / "cgroup") << text;
  }

  const std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / ("pgalloc_payers_" + std::to_string(::getpid()));
};

}  // namespace pgalloc::native_tests
