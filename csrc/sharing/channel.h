// Purpose: the owner's end of one peer's connection: its requests under way, and answers that the peer
// has not read yet.
//
// Thread safety: externally synchronised (the broker's lock).
//
// Invariants
//   1. Nothing here waits. Answers that the peer does not read are kept, and nothing more is read from
//      it before they are gone; so they are few.
//   2. Whatever memory a request needs on its way is there before its packet is read: no packet gets
//      lost, and no answer.
//   3. What an answer brings that cannot be sent is taken back.
#pragma once

#include <algorithm>
#include <cstdint>
#include <list>
#include <memory>
#include <string>

#include "sharing/endpoint.h"
#include "sharing/request.h"
#include "sharing/session.h"

namespace pgalloc {

class Channel {
 public:
  using Requests = std::list<Request>;

  Channel(Endpoint socket, std::unique_ptr<Session> session, bool greeted, SteadyTime now)
      : socket_(std::move(socket)), session_(std::move(session)), greeted_(greeted), since_(now) {}
  ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  Endpoint& socket() { return socket_; }
  Session& session() const { return *session_; }
  // What is under way is given up.
  std::unique_ptr<Session> take_session() noexcept;
  bool greeted() const { return greeted_; }
  void greet() { greeted_ = true; }
  SteadyTime since() const { return since_; }

  // A request with room for any packet.
  static void make_spare(Requests* spare);
  // Reads one packet: a request begins, the last one of requests(). `spare` is from make_spare(), and
  // may be used up.
  enum class Read : uint8_t { kRequest, kNothing, kEnded, kMalformed };
  Read read(Requests* spare, SteadyTime now);
  // Whether the other end is known to be closed, by every process that had it.
  bool hung_up() const { return hung_up_; }
  Requests& requests() { return requests_; }
  const Requests& requests() const { return requests_; }

  // The request is done, and gone if no answer is wanted. False if the peer has gone.
  bool answer(Requests::iterator request, Answer answer, SteadyTime now);
  bool send_kept(SteadyTime now);
  size_t kept_count() const { return kept_.size(); }
  // Whether it has begun to claim what was sent.
  bool claims() const {
    return std::ranges::any_of(requests_, [](const Request& request) {
      return request.op == wire::Op::kClaim && !request.begun.empty();
    });
  }

  // What it waits for, as epoll has it: to send what is kept, or to read.
  uint32_t wanted_events() const;
  // Until then it neither reads nor sends what is kept: the kernel has refused one of them.
  SteadyTime not_before() const { return not_before_; }

 private:
  Endpoint::Io send(Request& request, int* error);
  bool may_send_descriptor();
  void fail(Request& request, int error);
  void let_go_of_front();
  Read keep_part(std::string_view part);

  Endpoint socket_;
  std::unique_ptr<Session> session_;
  bool greeted_;
  bool hung_up_ = false;
  const SteadyTime since_;
  Requests requests_;
  Requests kept_;      // done, and their answers not sent
  std::string parts_;  // of the next request's payload
  SteadyTime not_before_{};
  int descriptors_unread_ = 0;  // at most: sent since the peer had read everything
};

}  // namespace pgalloc
