// Purpose: what is in a folder. (std::filesystem ends the program where there is no memory to list one.)
//
// Thread safety: any thread.
#pragma once

#include <dirent.h>
#include <fcntl.h>

#include <array>
#include <string>
#include <string_view>

#include "os/descriptor.h"
#include "os/syscalls.h"

namespace pgalloc::os {

struct FolderEntry {
  std::string_view name;
  bool may_be_folder = false;  // some file systems do not say
};

// Calls visit(entry) for each, but "." and "..", until that is false; for none where the folder cannot be
// read, and for some thousands only where it has no end.
template <class Visit>
void visit_folder(const std::string& folder, Visit visit) {
  const Descriptor directory(
      sys().open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_CLOEXEC, 0));
  if (!directory.open()) return;
  constexpr int kPortions = 64;
  alignas(dirent64) std::array<char, 8192> entries;
  for (int i = 0; i < kPortions; ++i) {
    const ssize_t size = sys().getdents(directory.fd(), entries.data(), entries.size());
    if (size <= 0) return;
    for (ssize_t at = 0; at < size;) {
      const auto* const entry = reinterpret_cast<const dirent64*>(entries.data() + at);
      at += entry->d_reclen;
      const std::string_view name = entry->d_name;
      if (name == "." || name == "..") continue;
      if (!visit(FolderEntry{name, entry->d_type == DT_DIR || entry->d_type == DT_UNKNOWN})) return;
    }
  }
}

}  // namespace pgalloc::os
