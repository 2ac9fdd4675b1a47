// Purpose: lets go where there is no memory. What is given back should need none, but lists of ranges do:
// so a little is kept, and freed when there is no other.
//
// Thread safety: any thread.
#pragma once

#include <new>

namespace pgalloc {

void spend_reserve();
void refill_reserve();

// Calls act(), and once more if there was no memory for it. REQUIRES: then everything was as before.
template <class Act>
auto with_reserve(Act act) -> decltype(act()) {
  try {
    return act();
  } catch (const std::bad_alloc&) {
    spend_reserve();
  }
  struct Refill {
    ~Refill() { refill_reserve(); }
  } const afterwards;
  return act();
}

}  // namespace pgalloc
