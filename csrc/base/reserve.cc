#include "base/reserve.h"

#include <atomic>
#include <cstddef>
#include <cstdlib>

namespace pgalloc {

namespace {

constexpr size_t kBytes = size_t{64} << 10;  // malloc() keeps what is freed of that size for others

std::atomic<void*> reserve = std::malloc(kBytes);

}  // namespace

void spend_reserve() { std::free(reserve.exchange(nullptr)); }

// Where there is no memory, the next one that needs it tries again.
void refill_reserve() {
  void* const memory = reserve == nullptr ? std::malloc(kBytes) : nullptr;
  if (memory != nullptr) std::free(reserve.exchange(memory));
}

}  // namespace pgalloc
