// Purpose: bring the pages of a mapped range into the page tables before they are touched
// (rows B15, B16), and write zeros over mapped ranges with as many threads as pay off.
//
// Thread safety: any thread.
//
// Prefaulting is best effort: it reports nothing, because the pages work without it.
#pragma once

#include <cstddef>

namespace pgalloc {

// REQUIRES: [address, address + length) is mapped writable and page-aligned.
void prefault(char* address, size_t length);

// memset to zero, by several threads when the range is large.
void clear_memory(char* address, size_t length);

namespace testing {
// Whether this process still uses MADV_POPULATE_WRITE, and mlock as the fallback.
bool prefault_by_populate();
bool prefault_by_mlock();
void reset_prefault();
}  // namespace testing

}  // namespace pgalloc
