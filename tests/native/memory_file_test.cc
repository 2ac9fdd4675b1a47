// What needs all components.

#include "file/memory_file.h"

#include <array>
#include <atomic>
#include <thread>

#include "native/support.h"
#include "os/fault_plan.h"
#include "os/thread.h"

namespace pgalloc::memory_file_test {
namespace {

using native_tests::is_asleep;

std::shared_ptr<MemoryFile> make() { return std::move(*MemoryFile::create({}, {})); }

TEST(every_close_returns_once_the_file_is_closed) {
  const auto file = make();
  MemoryFile::Access access;
  EXPECT(file->begin_access(access).ok());
  std::array<std::atomic<pid_t>, 2> ids{};
  std::array<std::thread, 2> closers;
  for (size_t i = 0; i < 2; ++i) {
    closers[i] = std::thread([&, i] {
      ids[i] = os::thread_id();
      EXPECT(file->close().ok());
    });
    while (ids[i] == 0 || !is_asleep(ids[i])) std::this_thread::yield();
  }
  EXPECT(file->closed());
  // The first one is kept in close(2) until the other waits for it again.
  EXPECT(os::install_fault({.name = "close", .hold = true}));
  access.operation.reset();
  while (!os::hold_reached()) std::this_thread::yield();
  while (!is_asleep(ids[1])) std::this_thread::yield();
  os::let_go();
  for (std::thread& closer : closers) closer.join();
  os::remove_fault();
}

}  // namespace
}  // namespace pgalloc::memory_file_test
