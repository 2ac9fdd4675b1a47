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

// Each stretch of advice is a mapping of its own for the kernel, which allows some 65,000 in a process.
constexpr size_t kStretchesMax = 8192;

// Addresses for `size` bytes, from a multiple of the huge page on unless there are only others; MAP_FAILED
// if there are none.
char* reserve_addresses(uint64_t size) {
  const auto reserve = [](uint64_t bytes) {
    return static_cast<char*>(sys().mmap(nullptr, bytes, PROT_NONE, kReserveFlags, -1, 0));
  };
  const auto padding_of = [](char* base) {
    return (0 - reinterpret_cast<uint64_t>(base)) & (huge_page_size() - 1);
  };
  char* const base = reserve(size);
  if (base == MAP_FAILED || padding_of(base) == 0) return base;
  sys().munmap(base, size);
  char* const wider = reserve(size + huge_page_size());
  if (wider == MAP_FAILED) return reserve(size);
  const uint64_t padding = padding_of(wider);
  if (padding > 0) sys().munmap(wider, padding);
  sys().munmap(wider + padding + size, huge_page_size() - padding);
  return wider + padding;
}

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

Result<std::shared_ptr<ChunkMap>> ChunkMap::reserve(std::optional<uint64_t> capacity, bool writable,
                                                    bool advised) {
  uint64_t size = capacity.value_or(default_capacity());
  while (true) {
    char* const base = reserve_addresses(size);
    if (base != MAP_FAILED) {
      // Terabytes of nothing do not belong in a core dump. Failure to say so does no harm.
      sys().madvise(base, size, MADV_DONTDUMP);
      return std::shared_ptr<ChunkMap>(new ChunkMap(base, size, writable, advised));
    }
    if (capacity || size <= kDefaultMin) {
      return Status::system_error(
          errno, "mmap",
          "no addresses for " + std::to_string(size) + " bytes: pass a smaller capacity=");
    }
    size = align_up(size / 2, page_size());
  }
}

ChunkMap::ChunkMap(char* base, uint64_t capacity, bool writable, bool advised)
    : base_(base), capacity_(capacity), writable_(writable), advised_(advised) {
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
  // Otherwise, where the machine gives huge pages to all, one byte of a small page would commit a huge one.
  const FileRange range{offset, offset + length};
  if (advised_) tell_kernel(range, /*huge=*/false);
  huge_.visit_range(range, [this](FileRange part, const auto&)
                               NO_THREAD_SAFETY_ANALYSIS { tell_kernel(part, /*huge=*/true); });
  mapped_[chunk].store(true, std::memory_order_release);
  return {};
}

void ChunkMap::advise(FileRange range, bool huge) try {
  MutexLock lock(mu_);
  const bool as_asked = huge ? huge_.span_of(range) == range.length() : huge_.is_empty_range(range);
  if (as_asked) return;
  const auto around = huge_.find(range.start);
  const bool splits =
      !huge && around.ok() && around.start() < range.start && around.end() > range.end;
  const FileRange touching{range.start - std::min<uint64_t>(range.start, 1), range.end + 1};
  const bool begins = huge && huge_.is_empty_range(touching);
  if ((splits || begins) && huge_.size() >= kStretchesMax) return;
  huge_.remove_range(range);
  if (huge) huge_.insert(range, {});
  if (huge) ever_huge_ = true;
  for (FileRange rest = range; !rest.empty();) {
    const FileRange part{rest.start,
                         std::min(rest.end, align_down(rest.start, kChunkSize) + kChunkSize)};
    if (mapped_[part.start / kChunkSize].load(std::memory_order_relaxed)) tell_kernel(part, huge);
    rest.start = part.end;
  }
} catch (const std::bad_alloc&) {  // NOLINT: it stays as it was
}

bool ChunkMap::allows_huge(uint64_t offset) {
  if (!ever_huge()) return false;
  MutexLock lock(mu_);
  return huge_.find(offset).ok();
}

void ChunkMap::tell_kernel(FileRange range, bool huge) {
  sys().madvise(address(range.start), range.length(), huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
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

// The owner advises anew what it uses in part; a child, which never hears of it, does without.
void ChunkMap::reset_after_fork() NO_THREAD_SAFETY_ANALYSIS {
  new (&mu_) Mutex(LockRank::kChunkMap);
  if (!ever_huge_) return;
  new (&huge_) RangeSet;  // another thread may have been at it
  for (uint64_t offset = 0; offset < capacity_; offset += kChunkSize) {
    if (!mapped_[offset / kChunkSize]) continue;
    tell_kernel({offset, std::min(offset + kChunkSize, capacity_)}, /*huge=*/false);
  }
}

void ChunkMap::seal() {
  MutexLock lock(mu_);
  sealed_ = true;
}

}  // namespace pgalloc
