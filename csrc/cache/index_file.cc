#include "cache/index_file.h"

#include <errno.h>
#include <sys/random.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "base/units.h"
#include "os/syscalls.h"

namespace pgalloc::cache {
namespace {

using Buckets = Bucket<SharedMemory>;
using Entries = Entry<SharedMemory>;

constexpr uint64_t kMagic = 0x3178646e696c6770;  // "pglindx1"
constexpr uint64_t kEntriesMax = SlotFormat::kEntriesMax;

// Of keys of usual lengths as many bytes as entries need; of longer ones fewer fit.
constexpr uint64_t kKeyBytesOfEntry = 64;
constexpr uint64_t kKeyBytesMin = uint64_t{256} << 20;
constexpr uint64_t kEntriesMin = 256;

struct Header {
  uint64_t magic;
  uint64_t bucket_count;
  uint64_t entry_count;
  uint64_t key_bytes;
  HashSecret secret;
  alignas(64) SharedMemory::Atomic<uint64_t> table;
  SharedMemory::Atomic<uint32_t> closed;
  SharedMemory::Atomic<uint64_t> entries_used;
};

Header* header_of(const SharedFile& file) { return reinterpret_cast<Header*>(file.data()); }

}  // namespace

struct IndexFile::Sizes {
  uint64_t buckets;
  uint64_t entries;
  uint64_t key_bytes;

  // REQUIRES: none is more than for kEntriesMax.
  uint64_t bytes() const {
    return align_up(page_size() + buckets * sizeof(Buckets) + entries * sizeof(Entries) + key_bytes,
                    page_size());
  }
};

// The last table has room for all of them when it is filled to seven eighths; those before it take as much once
// more.
IndexFile::Sizes IndexFile::sizes_for(uint64_t entries_max, uint64_t key_bytes_min) {
  constexpr uint64_t kFilled = Buckets::kSlots * 7;
  const uint64_t last = std::bit_ceil(entries_max * 8 / kFilled + 1);
  return {.buckets = 2 * last,
          .entries = entries_max,
          .key_bytes = std::max(entries_max * kKeyBytesOfEntry, key_bytes_min)};
}

IndexFile::IndexFile(SharedFile file, const Sizes& sizes)
    : file_(std::move(file)), secret_(header_of(file_)->secret) {
  char* const buckets = file_.data() + page_size();
  char* const entries = buckets + sizes.buckets * sizeof(Buckets);
  char* const keys = entries + sizes.entries * sizeof(Entries);
  index_ = {.table = &header_of(file_)->table,
            .buckets = reinterpret_cast<Buckets*>(buckets),
            .bucket_count = sizes.buckets,
            .entries = reinterpret_cast<Entries*>(entries),
            .entry_count = sizes.entries};
  keys_ = KeyArena(reinterpret_cast<KeyArena::Word*>(keys), sizes.key_bytes / KeyArena::kWord);
}

void IndexFile::close() { header_of(file_)->closed.store(1, std::memory_order_release); }

void IndexFile::set_entries_used(uint64_t count) {
  header_of(file_)->entries_used.store(count, std::memory_order_release);
}

uint64_t IndexFile::entries_used() const {
  return std::min(header_of(file_)->entries_used.load(std::memory_order_acquire),
                  index_.entry_count);
}

bool IndexFile::closed() const {
  return header_of(file_)->closed.load(std::memory_order_acquire) != 0;
}

Result<IndexFile> IndexFile::create(uint64_t entries_max) {
  uint64_t entries = std::min(entries_max, kEntriesMax);
  uint64_t key_bytes = kKeyBytesMin;
  auto file = SharedFile::create_for_reading(sizes_for(entries, key_bytes).bytes());
  // Where files may not be as long as that (RLIMIT_FSIZE), or addresses are short, it is for fewer.
  while (!file.ok() &&
         (file.status().error_number() == EFBIG || file.status().error_number() == ENOMEM) &&
         entries > kEntriesMin) {
    entries /= 2;
    key_bytes /= 2;
    file = SharedFile::create_for_reading(sizes_for(entries, key_bytes).bytes());
  }
  if (!file.ok()) return file.status().clone();
  const Sizes sizes = sizes_for(entries, key_bytes);
  Header* const header = header_of(*file);
  if (os::sys().getrandom(&header->secret, sizeof header->secret, 0) !=
      static_cast<ssize_t>(sizeof header->secret)) {
    return Status::system_error(errno, "getrandom");
  }
  header->bucket_count = sizes.buckets;
  header->entry_count = sizes.entries;
  header->key_bytes = sizes.key_bytes;
  header->magic = kMagic;
  return IndexFile(std::move(*file), sizes);
}

Result<IndexFile> IndexFile::map(os::Descriptor file) {
  Sizes sizes{};
  {
    const int own = os::sys().duplicate(file.fd());
    if (own < 0) return Status::system_error(errno, "fcntl");
    os::Descriptor same(own);
    if (!same.open()) return Status::system_error(errno, "fstat");
    auto front = SharedFile::map_for_reading(std::move(same), page_size());
    if (!front.ok()) return front.status().clone();
    const Header* const header = header_of(*front);
    sizes = {.buckets = header->bucket_count,
             .entries = header->entry_count,
             .key_bytes = header->key_bytes};
    const Sizes most = sizes_for(kEntriesMax, kKeyBytesMin);
    if (header->magic != kMagic || sizes.entries > most.entries || sizes.buckets > most.buckets ||
        sizes.key_bytes > most.key_bytes) {
      return Status::error(ErrorCode::kSharing, "the shared file of a cache is no index");
    }
  }
  auto all = SharedFile::map_for_reading(std::move(file), sizes.bytes());
  if (!all.ok()) return all.status().clone();
  return IndexFile(std::move(*all), sizes);
}

}  // namespace pgalloc::cache
