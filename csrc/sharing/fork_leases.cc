#include "sharing/fork_leases.h"

#include <new>

#include "file/file_registry.h"

namespace pgalloc {
namespace {

struct State {
  bool armed = false;
  std::vector<ForkLease> leases;
};

// Not a thread_local object: its destructor would run in threads that never forked.
thread_local State* state = nullptr;

void lease_to_child(RegisteredFile& registered) try {
  if (state == nullptr || !state->armed) return;
  auto& file = static_cast<MemoryFile&>(registered);  // there is no other kind
  // Kept in any case: this may be the file's last owner, and it cannot be destroyed from here.
  ForkLease& lease = state->leases.emplace_back();
  lease.file = file.weak_from_this().lock();
  if (lease.file != nullptr) lease.taken = file.references().lease_pinned(&lease.pages);
} catch (const std::bad_alloc&) {
  state->armed = false;  // the child does without this file, and those behind it
}

}  // namespace

void ForkLeases::arm() {
  FileRegistry::set_fork_hook(lease_to_child);
  if (state == nullptr) state = new State;
  state->armed = true;
}

std::vector<ForkLease> ForkLeases::take() {
  if (state == nullptr) return {};
  std::vector<ForkLease> leases = std::move(state->leases);
  delete state;
  state = nullptr;
  return leases;
}

}  // namespace pgalloc
