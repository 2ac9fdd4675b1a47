#include "backing/chunk_map.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <new>

#include "os/syscalls.h"

namespace pgalloc {

using os::sys;

namespace {

constexpr int kReserveFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
// What all maps of this process have reserved.
std::atomic<uint64_t> reserved_bytes{0};
constexpr uint64_t kDefaultMin = uint64_t{2} << 20;

}  // namespace

// 4 x the machine's memory, if addresses are plenty: a quarter of them is for files, and each takes at
// most a 64th of what is left of that, so that there is room for hundreds, and for everybody else. Under
// a limit on addresses (ulimit -v): a 16th of it.
uint64_t default_capacity() {
  constexpr uint64_t kForFiles = uint64_t{1} << 45;  // a quarter of what x86-64 and AArch64 have
  constexpr uint64_t kShare = 64;
  constexpr uint64_t kShareOfLimit = 16;
  const auto pages = static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES));
  uint64_t most = std::bit_ceil(4 * pages * page_size());
  const uint64_t left = kForFiles - std::min(kForFiles, reserved_bytes.load());
  most = std::min(most, std::max(std::bit_floor(left / kShare), kChunkSize));
  rlimit limit{};
  if (::getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    most = std::min(most,
                    align_down(static_cast<uint64_t>(limit.rlim_cur) / kShareOfLimit, kDefaultMin));
  }
  return std::max(most, kDefaultMin);
}

Result<std::shared_ptr<ChunkMap>> ChunkMap::reserve(std::optional<uint64_t> capacity,
                                                    bool writable) {
  uint64_t size = capacity.value_or(default_capacity());
  while (true) {
    void* base = sys().mmap(nullptr, size, PROT_NONE, kReserveFlags, -1, 0);
    if (base != MAP_FAILED) {
      // Terabytes of nothing do not belong in a core dump. Failure to say so does no harm.
      sys().madvise(base, size, MADV_DONTDUMP);
      return std::shared_ptr<ChunkMap>(new ChunkMap(static_cast<char*>(base), size, writable));
    }
    if (capacity || size <= kDefaultMin) {
      return Status::system_error(
          errno, "mmap",
          "no addresses for " + std::to_string(size) + " bytes: pass a smaller capacity=");
    }
    size = align_up(size / 2, page_size());
  }
}

ChunkMap::ChunkMap(char* base, uint64_t capacity, bool writable)
    : base_(base), capacity_(capacity), writable_(writable) {
  const uint64_t chunks = (capacity + kChunkSize - 1) / kChunkSize;
  mapped_ = std::make_unique<std::atomic<bool>[]>(chunks);
  reserved_bytes += capacity;
}

ChunkMap::~ChunkMap() {
  sys().munmap(base_, capacity_);
  reserved_bytes -= capacity_;
}

Status ChunkMap::map(int fd, FileRange range) {
  MutexLock lock(mu_);
  if (sealed_) return Status::error(ErrorCode::kClosed, "the file is closed");
  const uint64_t last = (range.end - 1) / kChunkSize;
  for (uint64_t chunk = range.start / kChunkSize; chunk <= last; ++chunk) {
    // Another thread may have won the race for it.
    if (mapped_[chunk].load(std::memory_order_relaxed)) continue;
    PGALLOC_RETURN_IF_ERROR(map_chunk(fd, chunk));
  }
  return {};
}

Status ChunkMap::map_chunk(int fd, uint64_t chunk) {
  const uint64_t offset = chunk * kChunkSize;
  const uint64_t length = std::min(kChunkSize, capacity_ - offset);
  const int protection = writable_ ? PROT_READ | PROT_WRITE : PROT_READ;
  void* mapped = sys().mmap(address(offset), length, protection, MAP_SHARED | MAP_FIXED, fd,
                            static_cast<off_t>(offset));
  if (mapped == MAP_FAILED) {
    const int error_number = errno;
    // The kernel may have taken the reservation away before it failed. Take it back, unless it is
    // still there, so that no other mapping lands inside our range.
    sys().mmap(address(offset), length, PROT_NONE, kReserveFlags | MAP_FIXED_NOREPLACE, -1, 0);
    return Status::system_error(error_number, "mmap");
  }
  sys().madvise(mapped, length, MADV_DONTDUMP);
  mapped_[chunk].store(true, std::memory_order_release);
  return {};
}

void ChunkMap::revoke_in_child() {
  const uint64_t chunks = (capacity_ + kChunkSize - 1) / kChunkSize;
  bool any = false;
  for (uint64_t chunk = 0; chunk < chunks; ++chunk) any = mapped_[chunk].exchange(false) || any;
  if (!any) return;
  // Where the kernel refuses that, the addresses are given up.
  if (sys().mmap(base_, capacity_, PROT_NONE, kReserveFlags | MAP_FIXED, -1, 0) == MAP_FAILED) {
    sys().munmap(base_, capacity_);
  }
}

void ChunkMap::reset_after_fork() { new (&mu_) Mutex(LockRank::kChunkMap); }

void ChunkMap::seal() {
  MutexLock lock(mu_);
  sealed_ = true;
}

}  // namespace pgalloc
