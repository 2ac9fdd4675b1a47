// Purpose: whether a process that has lost its connection can still see the pages it held. A lease
// lives as long as a view of it may be alive: a socket that ended is no proof that none is.
//
// Thread safety: externally synchronised. may_see() reads /proc, and may take a while: no lock should
// be held then.
//
// Invariant: an error of a system call never makes a process look as if it had ended, nor does what it
// says of itself, nor a /proc of other processes than those that the kernel names to this one.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <compare>
#include <cstdint>
#include <utility>
#include <vector>

#include "os/descriptor.h"

namespace pgalloc {

// A file, as stat(2) and /proc/PID/maps have it.
struct FileIdentity {
  unsigned major = 0;
  unsigned minor = 0;
  uint64_t inode = 0;
  bool known = false;  // else it cannot be told who has it mapped
  auto operator<=>(const FileIdentity&) const = default;

  // By a descriptor. On file systems that show another device in /proc/PID/maps than in stat(2) (btrfs,
  // overlayfs) a file is not known.
  static FileIdentity of(int fd);
};

// The id of a process that has none in this process's PID namespace.
constexpr pid_t kUnseen = -1;

class PeerProcess {
 public:
  // By the id that the kernel gives: that of the process that connected a socket, or that sent
  // something. 0: there never was one. kUnseen: only its handle knows it, if there is one. A handle
  // tells it from another one that has got its number since.
  explicit PeerProcess(pid_t pid, os::Descriptor handle = {})
      : pid_(pid), handle_(std::move(handle)) {}
  // Of the process that connected a socket: a pidfd, where the kernel has that (Linux 6.5).
  static os::Descriptor handle_of(int socket);
  // The process at the other end of a socket: that which connected it, listened, or made the pair.
  static PeerProcess behind(int socket);

  // Whether it is known to have ended.
  bool has_ended() const;

  // Whether it is alive and may have one of these files mapped. True where that cannot be known.
  bool may_see(const std::vector<FileIdentity>& files) const;
  // The same of each file, in one look; also true once *stop is.
  std::vector<bool> may_see_each(const std::vector<FileIdentity>& files,
                                 const std::atomic<bool>* stop = nullptr) const;
  // Whether a look may take long: its mappings are read, and a process may have a great many.
  bool has_mappings() const { return pid_ > 0 && !has_ended(); }
  // By its number: what is looked at is the same then.
  bool is_same(const PeerProcess& other) const { return pid_ > 0 && pid_ == other.pid_; }

 private:
  pid_t pid_;
  os::Descriptor handle_;
};

}  // namespace pgalloc
