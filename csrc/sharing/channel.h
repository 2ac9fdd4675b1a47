// Purpose: the owner's end of one peer's connection: its requests under way, and answers that the peer
// has not read yet.
//
// Thread safety: externally synchronised (the broker's lock).
//
// Invariants
//   1. Nothing here waits. Answers that the peer does not read are kept, and nothing more is read from
//      it before they are gone; so they are few.
//   2. Descriptors are closed once they are sent, or cannot be.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>

#include "sharing/endpoint.h"
#include "sharing/session.h"

namespace pgalloc {

class Channel {
 public:
  Channel(Endpoint socket, std::unique_ptr<Session> session, bool greeted, SteadyTime now)
      : socket_(std::move(socket)), session_(std::move(session)), greeted_(greeted), since_(now) {}
  ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  Endpoint& socket() { return socket_; }
  Session& session() { return *session_; }
  std::unique_ptr<Session> take_session() { return std::move(session_); }
  bool greeted() const { return greeted_; }
  void greet() { greeted_ = true; }
  SteadyTime since() const { return since_; }

  // Reads one packet into `buffer`, which *packet refers to then.
  using Buffer = std::array<char, wire::kPacketBytesMax + 1>;
  enum class Read : uint8_t { kPacket, kNothing, kEnded, kMalformed };
  Read read(Buffer& buffer, wire::Packet* packet, std::string* why, SteadyTime now);

  // The beginning of a payload. False if it is too long.
  bool keep_part(std::string_view part);
  // A request begins; finish() is called with its answer, in any order.
  Request& begin(const wire::Packet& packet);
  std::deque<std::unique_ptr<Request>>& requests() { return requests_; }

  // Sends the answer, or keeps it. False if the peer has gone.
  bool answer(uint32_t number, Answer answer, SteadyTime now);
  bool send_kept(SteadyTime now);

  // What it waits for, as epoll has it.
  uint32_t wanted_events() const;
  // After a refusal of the kernel: not before.
  SteadyTime not_before() const { return not_before_; }

  uint32_t registered = 0;  // what epoll knows
  uint32_t children = 0;    // channels of forked children
  uint64_t parent = 0;      // whose child it is; 0: none's

 private:
  struct Kept {
    std::string packet;
    int descriptor = -1;
    uint32_t number = 0;
    int refusals = 0;
  };
  void close_descriptor(Kept& kept);

  Endpoint socket_;
  std::unique_ptr<Session> session_;
  bool greeted_;
  const SteadyTime since_;
  std::deque<std::unique_ptr<Request>> requests_;
  std::deque<Kept> kept_;
  std::string parts_;  // of the next request
  SteadyTime not_before_{};
};

}  // namespace pgalloc
