// Purpose: memory of C++ that runs out when a Python program says so: preloaded, it takes the place of
// libstdc++'s operator new. tests/without_native_memory.py uses it.
//
// Thread safety: each thread runs out for itself, and all of the others together.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace {

constexpr int64_t kNever = -1;

// So many allocations succeed, and then one fails.
thread_local int64_t of_this_thread = kNever;
std::atomic<int64_t> of_others{kNever};
thread_local bool is_other = true;  // not the thread that has others fail
std::atomic<bool> failed{false};

bool runs_out() {
  bool now = false;
  if (of_this_thread >= 0) now = of_this_thread-- == 0;
  if (is_other && of_others.load() >= 0) now = of_others.fetch_sub(1) == 0 || now;
  if (now) failed = true;
  return now;
}

void* allocated(size_t size) { return runs_out() ? nullptr : std::malloc(size == 0 ? 1 : size); }
void* allocated(size_t size, std::align_val_t alignment) {
  const size_t boundary = static_cast<size_t>(alignment);
  return runs_out() ? nullptr : std::aligned_alloc(boundary, (size + boundary - 1) & -boundary);
}
void* or_throw(void* memory) {
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

extern "C" {

// This thread's allocation with that number fails; -1: none.
void fail_allocation(int64_t number) {
  failed = false;
  of_this_thread = number;
}
// One of all other threads' together.
void fail_allocation_of_others(int64_t number) {
  failed = false;
  is_other = false;
  of_others = number;
}
int allocation_failed() { return failed ? 1 : 0; }

}  // extern "C"

void* operator new(size_t size) { return or_throw(allocated(size)); }
void* operator new[](size_t size) { return or_throw(allocated(size)); }
void* operator new(size_t size, const std::nothrow_t&) noexcept { return allocated(size); }
void* operator new[](size_t size, const std::nothrow_t&) noexcept { return allocated(size); }
void* operator new(size_t size, std::align_val_t to) { return or_throw(allocated(size, to)); }
void* operator new[](size_t size, std::align_val_t to) { return or_throw(allocated(size, to)); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
