#include "torture/source.h"

#include <linux/falloc.h>

#include "os/syscalls.h"
#include "torture/verdict.h"

namespace pgalloc::torture {
namespace {

constexpr uint64_t kStrikesEvery = 200;  // calls of the workers
constexpr uint64_t kSyscallStrikesEvery = 8;

std::atomic<uint64_t> syscalls{0};

bool syscall_strikes() { return ++syscalls % kSyscallStrikesEvery == 0; }

int forget_to_punch(int fd, int mode, off_t offset, off_t length) {
  if ((mode & FALLOC_FL_PUNCH_HOLE) != 0 && syscall_strikes()) return 0;
  return os::kernel().fallocate(fd, mode, offset, length);
}

int count_everything(int fd, uint64_t offset, uint64_t length, os::CacheStat* out) {
  const int result = os::kernel().cachestat(fd, offset, length, out);
  if (result == 0 && syscall_strikes()) out->cached = length / page_size();
  return result;
}

}  // namespace

std::optional<Plant> plant_by_name(std::string_view name) {
  if (name == "shared") return Plant::kShared;
  if (name == "lost") return Plant::kLost;
  if (name == "dirty") return Plant::kDirty;
  if (name == "epoch") return Plant::kEpoch;
  return std::nullopt;
}

void install(Plant plant) {
  static os::Syscalls table = os::kernel();
  if (plant == Plant::kDirty) table.fallocate = forget_to_punch;
  if (plant == Plant::kEpoch) table.cachestat = count_everything;
  os::use(table);
}

bool Source::strikes() { return ++calls_ % kStrikesEvery == 0; }

Result<FileRange> Source::allocate(const AllocateRequest& request) {
  if (plant_ != Plant::kShared) return file_.allocate(request, /*may_wait=*/true);
  if (strikes()) {
    MutexLock lock(mu_);
    return latest_;
  }
  Result<FileRange> range = file_.allocate(request, /*may_wait=*/true);
  if (range.ok()) {
    MutexLock lock(mu_);
    latest_ = *range;
  }
  return range;
}

void Source::drop(FileRange range) {
  if (plant_ == Plant::kLost && strikes()) return;
  expect_ok(file_.dec_ref(range), "dec_ref");
}

}  // namespace pgalloc::torture
