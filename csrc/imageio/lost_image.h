// Purpose: what is said of an image whose descriptor is not ours any more.
//
// Thread safety: any thread.
#pragma once

#include <errno.h>

#include <string>

#include "base/status.h"

namespace pgalloc {

inline Status lost_image(int fd) {
  return Status::system_error(EBADF, "fstat",
                              "pgalloc's descriptor of the image (number " + std::to_string(fd) +
                                  ") was closed from outside");
}

}  // namespace pgalloc
