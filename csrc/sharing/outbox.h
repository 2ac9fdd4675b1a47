// Purpose: what a peer has to send to the owner of its pages, in order: requests, and pages that are given
// back. Pages go along with the next request, or in a packet of their own.
//
// Thread safety: externally synchronised.
//
// Invariants
//   1. A packet is sent whole or not at all (the socket is SOCK_SEQPACKET), and in the order in which it
//      was added: what was let go of before a request is back when that is done.
//   2. Sending needs no memory; nor does what is given back as long as there are spares.
//
// Errors: a std::bad_alloc leaves everything as it was.
#pragma once

#include <cstdint>
#include <list>
#include <string>
#include <string_view>

#include "sharing/endpoint.h"
#include "sharing/wire.h"

namespace pgalloc {

class Outbox {
 public:
  bool empty() const { return waiting_.empty(); }
  void clear() { waiting_.clear(); }  // but the spares

  // From here on so many pages more can be given back without memory.
  void make_spares(size_t count) { spares_.resize(spares_.size() + count); }
  void drop_spares(size_t count);
  void add(const wire::Pages& pages);
  // In as many packets as it takes.
  void add(wire::Op op, uint32_t number, std::string_view payload);
  // Sends the next packet. REQUIRES: !empty().
  Endpoint::Io send_next(const Endpoint& socket);

 private:
  struct Item {
    std::string packet;  // empty: pages are given back
    wire::Pages pages;
  };
  std::list<Item> waiting_;
  std::list<Item> spares_;
};

}  // namespace pgalloc
