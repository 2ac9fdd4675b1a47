// Purpose: parts of paths.
//
// Thread safety: any thread.
#pragma once

#include <string>

namespace pgalloc::os {

// The folder that a file is in, as open() takes it.
inline std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace pgalloc::os
