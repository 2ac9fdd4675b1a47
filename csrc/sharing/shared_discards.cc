#include "sharing/shared_discards.h"

#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "file/file_registry.h"
#include "guard/guard.h"
#include "sharing/owner_link.h"

namespace pgalloc {

namespace {

DiscardSource& own_files() { return FileRegistry::all(); }

std::vector<std::shared_ptr<OwnerLink>> other_owners() {
  auto links = OwnerLink::all();
  std::erase_if(links, [](const auto& link) { return link->is_to_this_process(); });
  return links;
}

// The guard's thread may outlive statics.
static_assert(std::is_trivially_destructible_v<SharedDiscards>);
constinit SharedDiscards instance;

}  // namespace

void SharedDiscards::install() {
  (void)own_files();  // it says that the guard is to ask it alone
  Guard::set_source(instance);
}

DiscardSource::Discarded SharedDiscards::discard_for(uint64_t commit, uint64_t bytes_max,
                                                     Time deadline) {
  Discarded result = own_files().discard(bytes_max, deadline);
  if (result.given_back >= bytes_max || !result.no_use()) return result;
  for (const auto& link : other_owners()) {
    const uint64_t given_back = link->ask_for_room(bytes_max - result.given_back, commit);
    if (given_back == 0) continue;
    result.given_back = std::min(bytes_max, result.given_back + given_back);
    result.exhausted = result.fruitless = false;
    if (result.given_back == bytes_max) break;
  }
  return result;
}

uint64_t SharedDiscards::release_kept(Time deadline) { return own_files().release_kept(deadline); }

uint64_t SharedDiscards::sweep(uint64_t bytes_max, bool waiting) {
  return own_files().sweep(bytes_max, waiting);
}

bool SharedDiscards::any_unpinned() {
  if (own_files().any_unpinned()) return true;
  const auto links = other_owners();
  return std::any_of(links.begin(), links.end(),
                     [](const auto& link) { return link->may_have_room(); });
}

void SharedDiscards::start_evictions() { own_files().start_evictions(); }

void SharedDiscards::wait_for_reclaim(Time deadline) { own_files().wait_for_reclaim(deadline); }

}  // namespace pgalloc
