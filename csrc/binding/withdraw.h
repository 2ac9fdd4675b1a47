// Purpose: to take back an offer that another process has at this one's request.
#pragma once

#include <string>

#include "sharing/owner_link.h"
#include "sharing/wire.h"

namespace pgalloc::binding {

// By claiming it, without waiting for that: what arrives is given back. Nothing happens if it was claimed.
inline void withdraw_offer(OwnerLink& link, const wire::Secret& secret) {
  std::string payload;
  wire::append(payload, secret);
  link.post(wire::Op::kClaim, payload,
            {[weak = link.weak_from_this()](OwnerLink::Reply& reply) {
               wire::Pages pages;
               if (!wire::Reader(reply.payload).read(pages)) return;
               if (const auto its = weak.lock()) its->give_back(pages.file, pages.range);
             },
             {}});
}

}  // namespace pgalloc::binding
