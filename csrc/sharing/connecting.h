// Purpose: how a process connects to an owner of pages.
//
// Thread safety: any thread, any number at a time.
//
// Lock order: the lock of the sockets that are being connected is held for a few system calls that do not
// wait, and no other lock is taken meanwhile.
//
// Invariant: a socket that is being connected is closed in a forked child. The owner knows this process
// by it, so a child that had it would keep what this process held after its death.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>

#include "base/status.h"
#include "sharing/owner_link.h"

namespace pgalloc {

class Connecting {
 public:
  // Once, and before Forks: so no lock of a fork's is taken while this one is held.
  static void install();

  struct Connected {
    std::shared_ptr<OwnerLink> link;
    uid_t owner = 0;
  };
  // Connects to the socket of that name (a path, or behind a NUL an abstract one), which texts call
  // `shown`. A process of this user or of root must listen there. kOwnerGone if none listens;
  // kInterrupted if patience.keep_waiting() says so.
  static Result<Connected> to(const std::string& name, const std::string& shown, uid_t user,
                              const OwnerLink::Patience& patience);
};

}  // namespace pgalloc
