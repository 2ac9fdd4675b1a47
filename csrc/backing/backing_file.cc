#include "backing/backing_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "os/retry.h"
#include "os/syscalls.h"
#include "os/transfer.h"

namespace pgalloc {

using os::retry_interrupted;
using os::sys;

Result<std::unique_ptr<BackingFile>> BackingFile::create_memfd() {
  const int fd = sys().memfd_create("pgalloc", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return Status::system_error(errno, "memfd_create");
  auto file = truncated(fd, /*adopted=*/false, "");
  if (!file.ok()) return file;
  // Peers get it, too: pages that are cut off would kill all who look at them (SIGBUS).
  if (sys().add_seals(fd, F_SEAL_SHRINK | F_SEAL_SEAL) != 0) {
    return Status::system_error(errno, "fcntl");
  }
  if (sys().fchmod(fd, 0600) != 0) return Status::system_error(errno, "fchmod");
  return file;
}

Result<std::unique_ptr<BackingFile>> BackingFile::open_path(const std::string& path) {
  constexpr mode_t kOwnerOnly = 0600;
  constexpr int kFlags = O_RDWR | O_CLOEXEC;
  std::string created_path = path;
  int fd = retry_interrupted(
      [&] { return sys().open(path.c_str(), kFlags | O_CREAT | O_EXCL, kOwnerOnly); });
  if (fd < 0 && errno == EEXIST) {
    created_path.clear();
    fd = retry_interrupted([&] { return sys().open(path.c_str(), kFlags, kOwnerOnly); });
  }
  if (fd < 0) return Status::system_error(errno, "open");
  return truncated(fd, /*adopted=*/false, std::move(created_path));
}

Result<std::unique_ptr<BackingFile>> BackingFile::adopt(int fd) {
  return truncated(fd, /*adopted=*/true, "");
}

Result<std::unique_ptr<BackingFile>> BackingFile::duplicate(int fd) {
  const int own = sys().duplicate(fd);
  if (own < 0) return Status::system_error(errno, "fcntl");
  return truncated(own, /*adopted=*/false, "");
}

Result<std::unique_ptr<BackingFile>> BackingFile::truncated(int fd, bool adopted,
                                                            std::string created_path) {
  struct statfs filesystem{};
  const bool known = sys().fstatfs(fd, &filesystem) == 0;
  const int statfs_error = errno;
  const bool in_memory = known && filesystem.f_type == TMPFS_MAGIC;
  // The kernel's own tmpfs, where memfds are, has no size, nor has one that was mounted without.
  const bool needs_blocks = known && !(in_memory && filesystem.f_blocks == 0);
  os::Descriptor descriptor = os::Descriptor::adopt(fd);
  if (!descriptor.open()) {
    const int error = errno;
    if (!adopted) sys().close(fd);
    if (!created_path.empty()) sys().unlink(created_path.c_str());
    return Status::system_error(error, "fstat");
  }
  std::unique_ptr<BackingFile> file;
  try {
    file.reset(new BackingFile(std::move(descriptor), in_memory, needs_blocks, adopted,
                               std::move(created_path)));
  } catch (const std::bad_alloc&) {  // nothing has moved
    if (adopted) (void)descriptor.release();
    if (!created_path.empty()) sys().unlink(created_path.c_str());
    throw;
  }
  const auto fail = [&](int error_number, const char* call) {
    file->disown();
    return Status::system_error(error_number, call);
  };
  if (!known) return fail(statfs_error, "fstatfs");
  struct stat status{};
  if (sys().fstat(fd, &status) != 0) return fail(errno, "fstat");
  if (!S_ISREG(status.st_mode)) {
    file->disown();
    return Status::error(ErrorCode::kOption, "the backing is not a regular file");
  }
  if (retry_interrupted([&] { return sys().ftruncate(fd, 0); }) != 0) {
    return fail(errno, "ftruncate");
  }
  return file;
}

BackingFile::~BackingFile() { close(); }

void BackingFile::close() { descriptor_.close(); }

void BackingFile::disown() {
  if (adopted_) (void)descriptor_.release();
  if (!created_path_.empty()) sys().unlink(created_path_.c_str());
  close();
}

Status lost_descriptor(int fd) {
  return Status::system_error(
      EBADF, "fstat",
      "pgalloc's descriptor of this file (number " + std::to_string(fd) +
          ") was closed from outside: pages that are mapped can be used, no others");
}

Status BackingFile::check() const {
  return descriptor_.intact() ? Status() : lost_descriptor(fd());
}

std::optional<uint64_t> BackingFile::size_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
    return std::nullopt;
  return align_down(static_cast<uint64_t>(limit.rlim_cur), page_size());
}

Status BackingFile::grow(uint64_t size) {
  PGALLOC_RETURN_IF_ERROR(check());
  const int result =
      retry_interrupted([&] { return sys().ftruncate(fd(), static_cast<off_t>(size)); });
  if (result != 0) {
    const int error = errno;
    const auto limit = error == EFBIG ? size_limit() : std::nullopt;
    if (!limit) return Status::system_error(error, "ftruncate");
    return Status::system_error(error, "ftruncate",
                                "the limit on the size of files (ulimit -f) is " +
                                    std::to_string(*limit) +
                                    " bytes: pass a smaller capacity=, or raise it");
  }
  size_.store(size, std::memory_order_release);
  return {};
}

Status BackingFile::commit(FileRange range) {
  PGALLOC_RETURN_IF_ERROR(check());
  const int result = retry_interrupted([&] {
    return sys().fallocate(fd(), 0, static_cast<off_t>(range.start),
                           static_cast<off_t>(range.length()));
  });
  return result == 0 ? Status() : Status::system_error(errno, "fallocate");
}

Result<bool> BackingFile::need_blocks(FileRange range) {
  Status status = commit(range);
  if (status.ok()) return true;
  if (status.code() != ErrorCode::kSystem || status.error_number() != EOPNOTSUPP) return status;
  struct statfs filesystem{};
  if (sys().fstatfs(fd(), &filesystem) != 0) return false;
  const auto block = static_cast<uint64_t>(filesystem.f_bsize);
  if (filesystem.f_bavail >= (range.length() + block - 1) / block) return false;
  return Status::system_error(ENOSPC, "fallocate");
}

Status BackingFile::punch(FileRange range) {
  if (Status status = check(); !status.ok()) {
    if (!is_mapped(range)) return status;
    if (sys().madvise(chunks_->address(range.start), range.length(), MADV_REMOVE) == 0) return {};
    return Status::system_error(errno, "madvise");
  }
  const int result = retry_interrupted([&] {
    return sys().fallocate(fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                           static_cast<off_t>(range.start), static_cast<off_t>(range.length()));
  });
  return result == 0 ? Status() : Status::system_error(errno, "fallocate");
}

Status BackingFile::write(FileRange range, const char* data) {
  if (Status status = check(); !status.ok()) {
    if (!is_mapped(range)) return status;
    std::memcpy(chunks_->address(range.start), data, range.length());
    return {};
  }
  return os::write_at(fd(), range.start, data, range.length());
}

Status BackingFile::write_zeros(FileRange range) {
  static constexpr size_t kBlock = size_t{1} << 20;
  static const std::vector<char> zeros(kBlock, 0);
  if (Status status = check(); !status.ok()) {
    if (!is_mapped(range)) return status;
    std::memset(chunks_->address(range.start), 0, range.length());
    return {};
  }
  uint64_t offset = range.start;
  while (offset < range.end) {
    // Step over holes. Where the file system cannot tell, treat everything as stored.
    const off_t data = sys().lseek(fd(), static_cast<off_t>(offset), SEEK_DATA);
    if (data < 0 && errno == ENXIO) return {};
    if (data >= 0) offset = std::max(offset, static_cast<uint64_t>(data));
    if (offset >= range.end) return {};
    const off_t hole = data < 0 ? -1 : sys().lseek(fd(), static_cast<off_t>(offset), SEEK_HOLE);
    const uint64_t stored_end =
        hole < 0 ? range.end : std::min(range.end, static_cast<uint64_t>(hole));
    while (offset < stored_end) {
      const uint64_t size = std::min<uint64_t>(kBlock, stored_end - offset);
      PGALLOC_RETURN_IF_ERROR(write({offset, offset + size}, zeros.data()));
      offset += size;
    }
  }
  return {};
}

Status BackingFile::map(ChunkMap& chunks, FileRange range) const {
  PGALLOC_RETURN_IF_ERROR(check());
  return chunks.map(fd(), range);
}

Result<uint64_t> BackingFile::stored_bytes() const {
  PGALLOC_RETURN_IF_ERROR(check());
  struct stat status{};
  if (sys().fstat(fd(), &status) != 0) return Status::system_error(errno, "fstat");
  return static_cast<uint64_t>(status.st_blocks) * 512;
}

Status write_as_advised(BackingFile& file, ChunkMap& chunks, FileRange range, const char* data) {
  if (range.empty() || !chunks.allows_huge(range.start)) return file.write(range, data);
  if (!chunks.is_mapped(range)) PGALLOC_RETURN_IF_ERROR(file.map(chunks, range));
  std::memcpy(chunks.address(range.start), data, range.length());
  return {};
}

}  // namespace pgalloc
