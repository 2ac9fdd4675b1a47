// Purpose: one socket of ours, and packets on it.
//
// Thread safety: externally synchronised.
//
// Invariant: a descriptor that is not ours any more is neither used nor closed (descriptor.h).
#pragma once

#include <sys/socket.h>

#include <chrono>
#include <cstdint>
#include <string_view>

#include "os/descriptor.h"

namespace pgalloc {

class Endpoint : public os::Descriptor {
 public:
  Endpoint() = default;
  explicit Endpoint(int fd);
  // As os::Descriptor::intact(), by the number that the kernel gives each socket: cheaper than fstat().
  bool intact() const;  // NOLINT(bugprone-derived-method-shadowing-base-method)

  enum class Io : uint8_t {
    kDone,
    kAgain,    // would have to wait
    kEnded,    // the other side has gone
    kLost,     // the descriptor is not ours any more
    kRefused,  // the kernel is short of something: it may do later
  };
  // One packet in two parts, with a descriptor unless that is -1. `error` says why it was refused.
  Io send(std::string_view head, std::string_view rest, int descriptor, int* error) const;
  // Has the kernel say which process has sent each packet, and give a handle of that which sends the
  // first one (Linux 6.5). False if it refuses.
  bool name_senders();
  // The next packet: *got bytes of it, `size` at most. Descriptors that come along were not asked for,
  // and stay with the kernel.
  Io receive(char* data, size_t size, size_t* got, int* error) {
    Sender sender;
    return receive(data, size, got, &sender, error);
  }
  // And its sender, after name_senders().
  struct Sender {
    pid_t pid = 0;          // 0: it is not seen from here
    os::Descriptor handle;  // a pidfd, if this is the first packet and the kernel gives one
  };
  Io receive(char* data, size_t size, size_t* got, Sender* sender, int* error);
  // The same, with one descriptor. Where several come along, all are closed.
  struct Received {
    size_t size = 0;
    bool truncated = false;        // the packet is longer than that
    int descriptor = -1;           // the caller's
    bool lost_descriptor = false;  // the table of descriptors was full
  };
  Io receive(char* data, size_t size, Received* received, int* error) const;
  // The same, but waits for a packet: kAgain after the time given to set_timeout(), or when a signal has
  // come. The socket that was looked at is the one that is waited for, whatever becomes of its number.
  Io wait(char* data, size_t size, Received* received, int* error) const;
  bool set_timeout(std::chrono::milliseconds longest) const;
  // Whether the other side has read all that was sent, as far as the kernel says.
  bool all_is_read() const;

 private:
  bool names_senders_ = false;
  bool wants_handle_ = false;  // of the next sender

  Io receive_with(int flags, char* data, size_t size, Received* received, int* error) const;
  Io receive(int flags, msghdr* message, size_t* got, int* error) const;

  uint64_t cookie_ = 0;  // 0: the kernel does not say
};

}  // namespace pgalloc
