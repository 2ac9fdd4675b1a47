#include "native/pages.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/check.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14
#endif

namespace pgalloc::benchmarks {

std::shared_ptr<MemoryFile> new_file() {
  const auto file = MemoryFile::create({}, {.capacity = 256 * kGiB});
  PGALLOC_CHECK(file.ok());
  return *file;
}

FileRange allocate(MemoryFile& file, uint64_t length, Direction direction, AllocationMode mode) {
  const auto range = file.allocate({.length = length, .direction = direction, .mode = mode}, true);
  PGALLOC_CHECK(range.ok());
  return *range;
}

void free_range(MemoryFile& file, FileRange range) { PGALLOC_CHECK(file.dec_ref(range).ok()); }

void drain(MemoryFile& file) { PGALLOC_CHECK(file.wait_for_reclaim(std::nullopt)); }

char* address_of(MemoryFile& file, FileRange range) {
  const auto address = file.map(range);
  PGALLOC_CHECK(address.ok());
  return *address;
}

BareFile::BareFile(uint64_t size) : fd_(::memfd_create("bare", MFD_CLOEXEC)), size_(size) {
  PGALLOC_CHECK(::ftruncate(fd_, static_cast<off_t>(size)) == 0);
  void* const mapped = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
  PGALLOC_CHECK(mapped != MAP_FAILED);
  address_ = static_cast<char*>(mapped);
}

BareFile::~BareFile() {
  ::munmap(address_, size_);
  ::close(fd_);
}

void BareFile::populate() { PGALLOC_CHECK(::madvise(address_, size_, MADV_POPULATE_WRITE) == 0); }

void BareFile::commit() { PGALLOC_CHECK(::fallocate(fd_, 0, 0, static_cast<off_t>(size_)) == 0); }

void BareFile::punch(uint64_t offset, uint64_t length) {
  PGALLOC_CHECK(::fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                            static_cast<off_t>(offset), static_cast<off_t>(length)) == 0);
}

}  // namespace pgalloc::benchmarks
