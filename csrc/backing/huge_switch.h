// Purpose: whether the kernel gives huge pages to shmem, that is to memfds, where it is advised so.
//
// Thread safety: any thread.
#pragma once

#include <string>

namespace pgalloc {

struct HugeSwitch {
  std::string path;    // of the switch that decides
  std::string choice;  // what it is at; empty if it cannot be read
  bool gives = false;
};

// As the kernel's switches say at the moment. `folder` is for tests.
HugeSwitch huge_switch_of_shmem(const std::string& folder = "/sys/kernel/mm/transparent_hugepage");

}  // namespace pgalloc
