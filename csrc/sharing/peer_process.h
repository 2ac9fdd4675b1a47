// Purpose: whether a process that has lost its connection can still see the pages it held. A lease
// lives as long as a view of it may be alive: a socket that ended is no proof that none is.
//
// Thread safety: externally synchronised. may_see() reads /proc, and may take a while: no lock should
// be held then.
//
// Invariant: an error of a system call never makes a process look as if it had ended.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "sharing/descriptor.h"

namespace pgalloc {

// A file, as stat(2) and /proc/PID/maps have it.
struct FileIdentity {
  unsigned major = 0;
  unsigned minor = 0;
  uint64_t inode = 0;
  bool known = false;  // else it cannot be told who has it mapped

  // By a descriptor. On file systems that show another device in /proc/PID/maps than in stat(2) (btrfs,
  // overlayfs) a file is not known.
  static FileIdentity of(int fd);
};

class PeerProcess {
 public:
  // By the id of the process that connected the socket. If that is 0, the process is not seen from here
  // (another namespace), and only the socket knows it.
  PeerProcess(int socket, pid_t pid);

  // Whether it is alive and may have one of these files mapped. True where that cannot be known.
  bool may_see(const std::vector<FileIdentity>& files) const;

 private:
  pid_t pid_;
  Descriptor handle_;  // a pidfd, for want of an id
};

}  // namespace pgalloc
