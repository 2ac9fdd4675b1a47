// Purpose: CRC-32C, the checksum of images (RFC 3720, appendix B.4), at the speed of memory where
// the processor has an instruction for it.
//
// Thread safety: any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pgalloc {

// The checksum of `before` bytes whose checksum is `crc`, followed by the `size` bytes at `data`.
uint32_t crc32c(const void* data, size_t size, uint32_t crc = 0);

namespace testing {
// The same without the instruction: what machines without it run.
uint32_t crc32c_portable(const void* data, size_t size, uint32_t crc = 0);
}  // namespace testing

}  // namespace pgalloc
