// Purpose: a function that is left in the middle and entered again, for the threads of an exploration
// (explorer.h).
//
// Thread safety: externally synchronised; entered by one kernel thread.
//
// 1. Its stack is used again by the next begin(), whatever was left on it: nothing there is destroyed.
// 2. The sanitizers are told of each switch.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

namespace pgalloc::native_tests::exploring {

class Fiber {
 public:
  Fiber() : stack_(new char[kStackBytes]) {}
  ~Fiber() {
#ifdef __SANITIZE_THREAD__
    if (tsan_ != nullptr) __tsan_destroy_fiber(tsan_);
#endif
  }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void begin(void (*entry)()) {
#ifdef __SANITIZE_THREAD__
    // A new one costs much, but it keeps a note of each frame that was abandoned.
    if (begun_++ % 256 == 0) {
      if (tsan_ != nullptr) __tsan_destroy_fiber(tsan_);
      tsan_ = __tsan_create_fiber(0);
    }
#endif
    ::getcontext(&inside_);
    inside_.uc_stack.ss_sp = stack_.get();
    inside_.uc_stack.ss_size = kStackBytes;
    inside_.uc_link = nullptr;
    ::makecontext(&inside_, entry, 0);
  }
  // Runs it until it calls leave().
  void enter() {
#ifdef __SANITIZE_THREAD__
    outside_tsan_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(tsan_, 0);
#endif
#ifdef __SANITIZE_ADDRESS__
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, stack_.get(), kStackBytes);
#endif
    ::swapcontext(&outside_, &inside_);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }
  void leave() {
#ifdef __SANITIZE_THREAD__
    __tsan_switch_to_fiber(outside_tsan_, 0);
#endif
#ifdef __SANITIZE_ADDRESS__
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, outside_stack_, outside_bytes_);
#endif
    ::swapcontext(&inside_, &outside_);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake_stack, &outside_stack_, &outside_bytes_);
#endif
  }
  // First of all inside.
  void arrive() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &outside_stack_, &outside_bytes_);
#endif
  }

 private:
  static constexpr size_t kStackBytes = size_t{256} << 10;

  std::unique_ptr<char[]> stack_;
  ucontext_t inside_{}, outside_{};
#ifdef __SANITIZE_ADDRESS__
  const void* outside_stack_ = nullptr;
  size_t outside_bytes_ = 0;
#endif
#ifdef __SANITIZE_THREAD__
  uint64_t begun_ = 0;
  void* tsan_ = nullptr;
  void* outside_tsan_ = nullptr;
#endif
};

}  // namespace pgalloc::native_tests::exploring
