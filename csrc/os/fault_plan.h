// Purpose: make chosen system calls fail, or hold one up, for tests, in release binaries too.
//
// Thread safety: any thread may call into the kernel while plans come and go. At most one plan is
// in force in the process.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace pgalloc::os {

// Names of the calls a plan may name, in the order of the table.
std::span<const std::string_view> syscall_names();

struct Fault {
  std::string_view name;
  int error_number = 0;         // 0: count the calls, fail none
  bool kill = false;            // instead of failing: SIGKILL this process, before the call
  bool hold = false;            // instead: keep the answer to `first` back until let_go()
  uint64_t first = 1;           // the first call that fails, counted from 1
  uint64_t times = UINT64_MAX;  // how many fail from there on
};

// Puts `fault` in force and starts counting. False when the name is unknown or a plan is in force.
bool install_fault(const Fault& fault);
void remove_fault();
// Calls of the named kind since install_fault, and how many of them were made to fail.
uint64_t fault_calls();
uint64_t fault_failures();
// Whether the held call was made; whether it went on by itself, after a minute. let_go() lets it
// return to its caller; so does remove_fault().
bool hold_reached();
bool hold_expired();
void let_go();

}  // namespace pgalloc::os
