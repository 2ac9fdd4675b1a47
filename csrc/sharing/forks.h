// Purpose: what happens to shared pages, and to the core's threads, when the process forks. A child
// becomes a peer of the owners of its parent's pages, with leases from the moment of the fork: its
// views stay what they are, whatever its parent does. All of it is native, and runs in fork() itself
// (pthread_atfork), so a fork by C code does the same as os.fork().
//
// Thread safety: any thread may fork. One fork at a time goes through the phases; others wait.
//
// The phases. Before the fork, in the forking thread:
//   1. Other owners, of whose pages this process holds some, are asked for a connection for the child.
//      Answers that may bring leases are kept back from here to the end. No lock but that of forks is
//      held while this waits, and it waits for two seconds at most, for all owners together. This
//      process's own broker answers meanwhile: it may be the owner, or owners that fork may wait for it.
//   2. The locks are taken: broker, guard, registry of files, lists of seats and links; a pair of sockets
//      is made for the child, and a session for it in the broker.
//   3. The locks of all files are taken, and the leases for the child, on what is pinned.
// In the parent: the locks are let go of, answers go on, the child's ends of connections are closed.
// In the child: the generation of the process begins, the locks are let go of, what is the parent's is
// closed, and each seat gets a file that is the child's own.
//
// Invariants
//   1. No phase throws, waits for the GIL or needs it. The forking thread may have it, or not.
//   2. Leases are never fewer than the child's handles: a handle that is made or ends meanwhile in
//      another thread leaves the child a lease too many, until it ends.
//   3. A view in a child shows what its parent's showed, and what is written there since, but never
//      pages that were given to others since then: there is a lease; or the pages have no owner any more
//      (the file was closed, or its owner has ended); or the child cannot touch that mapping (SIGSEGV),
//      because something was short: descriptors, memory, or an owner that did not answer. (But if then
//      the kernel refuses both to replace the mapping and to remove it, it stays.)
//   4. Where the child has a lease, but no file of its own, because something was short there or an image
//      was still being loaded, its handles raise ForkedError and its views work.
//   5. A child's connection that carries leases is open as long as a file uses it, or a view might.
//
// Lock order: forks, broker, guard, registry of files, seats, links, then the locks of all files, in
// any order: no other thread holds two of these.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "sharing/owner_link.h"

namespace pgalloc {

class Forks {
 public:
  // To be called before there is anything to fork. What has been done is not done again.
  static void install();

  // Stops the core's threads, but those at work for one call, and starts them again. Calls nest. A fork
  // needs neither; but Python counts threads, and warns of them.
  static void park_threads();
  static void resume_threads();

  // In a forked child: the links that it was born with, which are the caller's from here on.
  static std::vector<std::shared_ptr<OwnerLink>> take_born_links();

  // How long a fork waits for other owners. Shorter in tests.
  static inline std::chrono::milliseconds ask_max{2000};
};

}  // namespace pgalloc
