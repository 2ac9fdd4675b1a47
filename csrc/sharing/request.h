// Purpose: what a peer asks for, and what it is answered.
//
// Thread safety: values only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <string>

#include "base/status.h"
#include "os/descriptor.h"
#include "sharing/offers.h"
#include "sharing/wire.h"

namespace pgalloc {

struct Answer {
  Status status;
  std::string payload;
  os::Descriptor descriptor;         // sent along
  bool descriptor_is_spare = false;  // where it cannot be sent, the rest is
  bool malformed = false;            // no peer sends this: it is dropped instead of answered
};

// A request under way, and then its answer.
struct Request {
  wire::Op op = wire::Op::kPing;
  uint32_t number = 0;  // 0: no answer is wanted
  std::string payload;
  size_t released = 0;      // bytes of pages at the front of `payload`, to be given back first
  uint64_t progress = 0;    // how far it has come, in its own terms
  uint64_t given_back = 0;  // bytes of the pages at `progress` in a payload of such
  // An offer that gets its leases: it has the first of its pages; or one that is being claimed: it has the
  // last of them still. With a bad status in `answer` it is taken back.
  std::list<Offer> begun;
  bool waits = false;  // for something else: it need not be asked again at once
  Answer answer;
  int refusals = 0;   // by the kernel, to send the answer
  bool undo = false;  // once the answer is sent it is a request of its own: see Session::undo_of()
};

}  // namespace pgalloc
