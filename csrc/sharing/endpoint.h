// Purpose: one descriptor of ours that is a socket, and packets on it. Programs close descriptors that
// are not theirs (before they become daemons, after they fork), and the number is then another
// file's: so it is looked at before it is used.
//
// Thread safety: externally synchronised.
//
// Invariant: a descriptor that is not ours any more is neither used nor closed.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string_view>
#include <utility>

#include "base/status.h"

namespace pgalloc {

class Endpoint {
 public:
  Endpoint() = default;
  // Takes over a socket that is open, or nothing (-1).
  explicit Endpoint(int fd);
  Endpoint(Endpoint&& other) noexcept;
  Endpoint& operator=(Endpoint&& other) noexcept;
  ~Endpoint() { close(); }

  int fd() const { return fd_; }
  bool open() const { return fd_ >= 0; }
  // Whether the descriptor is still the socket that was taken over.
  bool intact() const;
  void close();
  // It is the caller's from here on.
  int release() { return std::exchange(fd_, -1); }

  enum class Io : uint8_t {
    kDone,
    kAgain,    // would have to wait
    kEnded,    // the other side has gone
    kLost,     // the descriptor is not ours any more
    kRefused,  // the kernel is short of something: it may do later
  };
  // One packet, with a descriptor unless that is -1. `error` says why it was refused.
  Io send(std::string_view packet, int descriptor, int* error) const;
  // The next packet: *got bytes of it, `size` at most. Descriptors that come along were not asked for,
  // and stay with the kernel.
  Io receive(char* data, size_t size, size_t* got, int* error) const;

 private:
  Io outcome(int error_number, int* error) const;

  int fd_ = -1;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

}  // namespace pgalloc
