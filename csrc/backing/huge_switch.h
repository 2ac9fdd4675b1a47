// Purpose: whether the kernel gives huge pages to shmem, that is to memfds, where it is advised so.
//
// Thread safety: any thread.
#pragma once

namespace pgalloc {

// As /sys/kernel/mm/transparent_hugepage says at the moment; false if it says nothing.
bool huge_pages_of_shmem();

}  // namespace pgalloc
