// Purpose: whether a process that has lost its connection can still see the pages it held. A lease
// lives as long as a view of it may be alive: a socket that ended is no proof that none is.
//
// Thread safety: externally synchronised.
#pragma once

#include <sys/types.h>

#include <vector>

namespace pgalloc {

class PeerProcess {
 public:
  // By the socket that it connected with, if that still knows, or by its id; 0 is no process.
  PeerProcess(int socket, pid_t pid);
  PeerProcess(PeerProcess&& other) noexcept;
  PeerProcess& operator=(PeerProcess&& other) noexcept;
  ~PeerProcess();

  // Whether it is alive and may have one of these files mapped. True where that cannot be known.
  bool may_see(const std::vector<int>& files) const;

 private:
  bool alive() const;

  pid_t pid_;
  int handle_ = -1;  // a pidfd
};

}  // namespace pgalloc
