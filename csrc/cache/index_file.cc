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
constexpr uint64_t kEntriesMax = uint64_t{1} << 32;

struct Header {
  uint64_t magic;
  uint64_t bucket_count;
  uint64_t entry_count;
  HashSecret secret;
  alignas(64) SharedMemory::Atomic<uint64_t> table;
};

struct Sizes {
  uint64_t buckets;
  uint64_t entries;
  // REQUIRES: both are at most what kEntriesMax makes them.
  uint64_t bytes() const {
    return page_size() + buckets * sizeof(Buckets) + entries * sizeof(Entries);
  }
};

// The last table has room for all of them when it is filled to seven eighths; those before it take as much once
// more.
Sizes sizes_for(uint64_t entries_max) {
  constexpr uint64_t kFilled = Buckets::kSlots * 7;
  const uint64_t last = std::bit_ceil(entries_max * 8 / kFilled + 1);
  return {.buckets = 2 * last, .entries = entries_max};
}

Header* header_of(const SharedFile& file) { return reinterpret_cast<Header*>(file.data()); }

Status no_index() {
  return Status::error(ErrorCode::kSharing, "the shared file of a cache is no index");
}

}  // namespace

IndexFile::IndexFile(SharedFile file, uint64_t bucket_count, uint64_t entry_count)
    : file_(std::move(file)), secret_(header_of(file_)->secret) {
  char* const buckets = file_.data() + page_size();
  index_ = {.table = &header_of(file_)->table,
            .buckets = reinterpret_cast<Buckets*>(buckets),
            .bucket_count = bucket_count,
            .entries = reinterpret_cast<Entries*>(buckets + bucket_count * sizeof(Buckets)),
            .entry_count = entry_count};
}

Result<IndexFile> IndexFile::create(uint64_t entries_max) {
  const Sizes sizes = sizes_for(std::min(entries_max, kEntriesMax));
  auto file = SharedFile::create_for_reading(align_up(sizes.bytes(), page_size()));
  if (!file.ok()) return file.status().clone();
  Header* const header = header_of(*file);
  if (os::sys().getrandom(&header->secret, sizeof header->secret, 0) !=
      static_cast<ssize_t>(sizeof header->secret)) {
    return Status::system_error(errno, "getrandom");
  }
  header->bucket_count = sizes.buckets;
  header->entry_count = sizes.entries;
  header->magic = kMagic;
  return IndexFile(std::move(*file), sizes.buckets, sizes.entries);
}

Result<IndexFile> IndexFile::map(os::Descriptor file) {
  Header header{};
  {
    const int own = os::sys().duplicate(file.fd());
    if (own < 0) return Status::system_error(errno, "fcntl");
    os::Descriptor same(own);
    if (!same.open()) return Status::system_error(errno, "fstat");
    auto front = SharedFile::map_for_reading(std::move(same), page_size());
    if (!front.ok()) return front.status().clone();
    header.magic = header_of(*front)->magic;
    header.bucket_count = header_of(*front)->bucket_count;
    header.entry_count = header_of(*front)->entry_count;
  }
  const Sizes sizes{.buckets = header.bucket_count, .entries = header.entry_count};
  const uint64_t buckets_max = sizes_for(kEntriesMax).buckets;
  if (header.magic != kMagic || sizes.entries > kEntriesMax || sizes.buckets > buckets_max) {
    return no_index();
  }
  auto all = SharedFile::map_for_reading(std::move(file), align_up(sizes.bytes(), page_size()));
  if (!all.ok()) return all.status().clone();
  return IndexFile(std::move(*all), sizes.buckets, sizes.entries);
}

}  // namespace pgalloc::cache
