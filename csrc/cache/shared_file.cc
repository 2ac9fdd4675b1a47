#include "cache/shared_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <string>

#include "os/syscalls.h"

namespace pgalloc::cache {

using os::sys;

namespace {

// Linux 5.1; Debian 12's headers know it, older ones do not.
constexpr int kSealFutureWrite = 0x0010;
constexpr int kFixedSize = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

}  // namespace

Result<SharedFile> SharedFile::create_for_reading(uint64_t size) {
  return create(size, kFixedSize | kSealFutureWrite);
}

Result<SharedFile> SharedFile::create_for_writing(uint64_t size) {
  return create(size, kFixedSize);
}

Result<SharedFile> SharedFile::create(uint64_t size, int seals) {
  const int fd = sys().memfd_create("pgalloc-cache", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return Status::system_error(errno, "memfd_create");
  os::Descriptor file(fd);
  if (!file.open()) return Status::system_error(errno, "fstat");
  if (sys().ftruncate(fd, static_cast<off_t>(size)) != 0) {
    return Status::system_error(errno, "ftruncate");
  }
  // Mapped first: from the seal on nothing can be mapped for writing.
  auto mapped = map(std::move(file), size, PROT_READ | PROT_WRITE);
  if (!mapped.ok()) return mapped;
  if (sys().madvise(mapped->data_, size, MADV_DONTFORK) != 0) {
    return Status::system_error(errno, "madvise");
  }
  if (sys().add_seals(fd, seals) != 0) return Status::system_error(errno, "fcntl");
  return mapped;
}

Result<SharedFile> SharedFile::map_for_reading(os::Descriptor file, uint64_t size) {
  return map(std::move(file), size, PROT_READ);
}

Result<SharedFile> SharedFile::map_for_writing(os::Descriptor file, uint64_t size) {
  return map(std::move(file), size, PROT_READ | PROT_WRITE);
}

Result<SharedFile> SharedFile::map(os::Descriptor file, uint64_t size, int protection) {
  struct stat status{};
  if (sys().fstat(file.fd(), &status) != 0) return Status::system_error(errno, "fstat");
  if (static_cast<uint64_t>(status.st_size) < size) {
    return Status::error(ErrorCode::kSharing, "a shared file of a cache has " +
                                                  std::to_string(status.st_size) +
                                                  " bytes, and not " + std::to_string(size));
  }
  void* const data = sys().mmap(nullptr, size, protection, MAP_SHARED, file.fd(), 0);
  if (data == MAP_FAILED) return Status::system_error(errno, "mmap");
  SharedFile mapped;
  mapped.file_ = std::move(file);
  mapped.data_ = static_cast<char*>(data);
  mapped.size_ = size;
  return mapped;
}

SharedFile& SharedFile::operator=(SharedFile&& other) noexcept {
  std::swap(file_, other.file_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

SharedFile::~SharedFile() {
  if (data_ != nullptr) sys().munmap(data_, size_);
}

Result<uint64_t> SharedFile::stored_bytes() const {
  struct stat status{};
  if (sys().fstat(fd(), &status) != 0) return Status::system_error(errno, "fstat");
  return static_cast<uint64_t>(status.st_blocks) * 512;
}

}  // namespace pgalloc::cache
