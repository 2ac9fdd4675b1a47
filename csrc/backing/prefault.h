// Purpose: bring the pages of a mapped range into the page tables before they are touched
// (rows B15, B16), commit them, and write zeros over mapped ranges with as many threads as pay off.
//
// Thread safety: any thread.
//
// Prefaulting is best effort: it reports nothing, because the pages work without it.
#pragma once

#include <cstddef>

#include "base/status.h"

namespace pgalloc {

// REQUIRES: [address, address + length) is mapped writable and page-aligned.
void prefault(char* address, size_t length);

// The same, where it matters whether it happened: touches the pages of a range that is new and known to no
// other thread. By one thread: two clear no more huge pages in a second than one does (docs/benchmarks.md).
Status commit_by_touch(char* address, size_t length);

// memset to zero, by several threads when the range is large.
void clear_memory(char* address, size_t length);

namespace testing {
// Whether this process still uses MADV_POPULATE_WRITE, and mlock as the fallback.
bool prefault_by_populate();
bool prefault_by_mlock();
void reset_prefault();
}  // namespace testing

}  // namespace pgalloc
