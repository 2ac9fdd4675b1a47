// Purpose: the proof, while no thread works, that what the allocator believes, what the workers hold
// and what the kernel stores are one and the same.
//
// Thread safety: no other thread may use the file.
#pragma once

#include <vector>

#include "file/memory_file.h"
#include "torture/stamps.h"

namespace pgalloc::torture {

// `holdings` are all references there are.
//   1. verify() passes.
//   2. Every page has exactly the references that are held: none is lost, none too many.
//   3. Ledger = usage set = kernel, page by page.
void audit_at_rest(MemoryFile& file, const std::vector<Holding>& holdings);

// Everything was freed: no segment, nothing booked, not one block left in the kernel.
void audit_at_the_end(MemoryFile& file);

}  // namespace pgalloc::torture
