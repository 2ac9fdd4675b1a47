// Purpose: what memory is used for (row K1). The values are part of the API and of saved images.
//
// Thread safety: values only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pgalloc {

enum class MemoryKind : uint8_t {
  kSystem = 0,
  kAnonymous = 1,
  kPageCache = 2,
  kTmpfs = 3,
  kRamdiskfs = 4,
  kMapped = 5,  // memory that no MemoryFile backs
};
inline constexpr size_t kMemoryKinds = 6;

}  // namespace pgalloc
