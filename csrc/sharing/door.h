// Purpose: a listening socket for processes in other network namespaces, to which abstract names say
// nothing. It is bound to a file that is there for a moment only; afterwards a descriptor of the file
// leads to it, through /proc.
//
// Thread safety: externally synchronised (the broker's lock).
//
// Invariants
//   1. The descriptor of the file is closed before the socket, which keeps the inode: else another file
//      could get the inode's number and be taken for this one.
//   2. A file that could not be unlinked is unlinked later, before another one is made; and what a process
//      has left that was killed in that moment, when any process of the user opens its door.
#pragma once

#include <string>

#include "os/descriptor.h"
#include "sharing/endpoint.h"

namespace pgalloc {

class Door {
 public:
  Door() = default;
  Door(const Door&) = delete;
  Door& operator=(const Door&) = delete;

  // A listening socket, or one that is not open: there is no door then. REQUIRES: close().
  Endpoint open();
  void close();
  bool intact() const { return file_.intact(); }

  // Where others connect; empty while it is closed.
  const std::string& path() const { return path_; }
  // For tests: what could be closed from outside; negative while it is closed.
  int fd() const { return file_.fd(); }

 private:
  Endpoint listen();
  bool unlink();

  os::Descriptor file_;
  std::string path_;
  std::string name_;  // of the file; empty once it is unlinked
};

}  // namespace pgalloc
