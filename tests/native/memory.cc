#include "native/memory.h"

#include <cstdlib>

void* operator new(size_t size) {
  void* const memory = pgalloc::native_tests::memory_runs_out() ? nullptr : std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new(size_t size, const std::nothrow_t&) noexcept { return std::malloc(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
