#include "native/memory.h"

#include <malloc.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>

namespace pgalloc::native_tests {
namespace {

constexpr char kSpoiled = '\xdd';
std::atomic<bool> keeps{false};
std::atomic<size_t> kept_count{0};
std::atomic<size_t> spoiled_count{0};
std::array<char*, 1000> kept;

void free_or_keep(void* memory) {
  const size_t place = keeps && memory != nullptr ? kept_count++ : kept.size();
  if (place >= kept.size()) return std::free(memory);
  kept[place] = static_cast<char*>(memory);
  std::memset(memory, kSpoiled, ::malloc_usable_size(memory));
  ++spoiled_count;
}

}  // namespace

void keep_freed_memory() { keeps = true; }

bool freed_memory_is_untouched() {
  keeps = false;
  const size_t count = spoiled_count;
  return std::all_of(kept.begin(), kept.begin() + static_cast<ptrdiff_t>(count), [](char* bytes) {
    return std::all_of(bytes, bytes + ::malloc_usable_size(bytes),
                       [](char byte) { return byte == kSpoiled; });
  });
}

}  // namespace pgalloc::native_tests

void* operator new(size_t size) {
  void* const memory = pgalloc::native_tests::memory_runs_out() ? nullptr : std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new(size_t size, const std::nothrow_t&) noexcept { return std::malloc(size); }
void operator delete(void* memory) noexcept { pgalloc::native_tests::free_or_keep(memory); }
void operator delete(void* memory, size_t) noexcept { pgalloc::native_tests::free_or_keep(memory); }
