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

// Discards of all files what counts against the limits of this payer, which process `pid` belongs to, in
// about 2 ms at most, until `commit` bytes fit there. The bytes that went.
//
// First what its own memory cgroup has unpinned. In the cgroup of this process, and in those above that both
// are in, anything counts; the guard of this process watches these limits, and no more is discarded than
// they need.
uint64_t make_room_for(const std::string& payer, pid_t pid, uint64_t bytes_max, uint64_t commit);

namespace testing {
// Where /proc is. REQUIRES: a string that lives as long as it is used.
void look_for_payers_in(const char* proc);
}  // namespace testing

}  // namespace pgalloc
