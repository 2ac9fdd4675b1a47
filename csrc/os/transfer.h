// Purpose: reading and writing whole ranges of a file: interrupted and partial calls go on.
//
// Thread safety: any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"

namespace pgalloc::os {

// The bytes read: fewer than `size` only where the file ends.
Result<size_t> read_at(int fd, uint64_t offset, char* data, size_t size);
Status write_at(int fd, uint64_t offset, const char* data, size_t size);

}  // namespace pgalloc::os
