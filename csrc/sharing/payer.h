// Purpose: whose memory limit the pages of a peer count against. The kernel charges a page to the memory
// cgroup of the process that touches it first, which of pages that a peer unpins is the peer, as a rule.
//
// Thread safety: any thread.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

namespace pgalloc {

// The name of the discard queue for what process `pid` unpins: the path of its memory cgroup at this
// moment; empty if it is in the cgroup of this process, or if there is no memory controller. A process
// whose cgroup cannot be read (pid <= 0, another PID namespace) has a queue of its own, by `number`.
std::string payer_of(pid_t pid, uint64_t number);

// Discards of all files what counts against this payer's limit, in about 2 ms at most. The bytes that went.
//
// A payer elsewhere gets what its own group has unpinned: nothing else counts there. In the group of this
// process its guard watches the same limit, and no peer can have more discarded than that needs.
uint64_t make_room_for(const std::string& payer, uint64_t bytes_max);

namespace testing {
// Where /proc is. REQUIRES: a string that lives as long as it is used.
void look_for_payers_in(const char* proc);
}  // namespace testing

}  // namespace pgalloc
