// Purpose: a socket with a path, by which processes that are not children connect.
//
// Thread safety: any thread.
//
// Invariants
//   1. Of processes that want to serve at one path at once, one does. The others are told.
//   2. Whatever fails, and whenever it ends, no file is left behind, and no other process's is removed.
//      In a forked child all of it is the parent's.
//   3. Only a process that has the lock of the folder removes a socket that it has not made: one that
//      does not listen. What is bound without the lock listens from the first moment. Its own a server
//      removes while it listens: until then its inode has no other file, and it is taken for left behind
//      by no other server.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "base/process_generation.h"
#include "base/status.h"
#include "os/path.h"
#include "sharing/session.h"

namespace pgalloc {

class Server {
 public:
  // Takes the place of a socket that was left behind there. `path` is absolute.
  static Result<std::unique_ptr<Server>> create(const std::string& path, Scope scope);
  ~Server() { close(); }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Accepts no more peers, and removes the file.
  void close();
  bool closed() const { return closed_.load(); }

 private:
  struct Identity {
    dev_t device = 0;
    ino_t inode = 0;
  };

  explicit Server(std::string path) : path_(std::move(path)), folder_(os::folder_of(path_)) {}
  Status listen(Scope scope);
  Status listen_locked(Scope scope);
  Status listen_unlocked(Scope scope, const char* why);
  Status hand_over(int fd, const std::string& file, Scope scope);
  void remove_file() const;

  const std::string path_;
  const std::string folder_;  // close() needs no memory
  const uint32_t generation_ = process_generation();
  Identity identity_;               // of the file
  uint64_t number_ = 0;             // of the listener
  std::atomic<bool> closed_{true};  // until it listens
};

}  // namespace pgalloc
