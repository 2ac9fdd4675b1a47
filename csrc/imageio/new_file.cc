#include "imageio/new_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/stat.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <random>
#include <vector>

#include "imageio/lost_image.h"
#include "os/path.h"
#include "os/retry.h"
#include "os/syscalls.h"

namespace pgalloc {

using os::retry_interrupted;
using os::sys;

namespace {

constexpr mode_t kOwnerOnly = 0600;  // until it has the mode of the file that it replaces
constexpr mode_t kAsUmaskSays = 0666;
constexpr mode_t kPermissions = 0777;
constexpr mode_t kGroupPermissions = 0070;
constexpr int kAttempts = 100;
constexpr char kAcl[] = "system.posix_acl_access";

// A name beside `path` that no other program is likely to choose.
std::string temporary_name(const std::string& path) {
  std::random_device random;
  char suffix[48];
  std::snprintf(suffix, sizeof suffix, ".%08x%08x.tmp", random(), random());
  const std::string folder = os::folder_of(path);
  const std::string name = path.substr(path.rfind('/') + 1);
  // Leaves room for the suffix in a name of at most 255 bytes.
  return (folder == "/" ? "" : folder) + "/." + name.substr(0, 200) + suffix;
}

bool has_no_unnamed_files(int error_number) {
  return error_number == EOPNOTSUPP || error_number == EISDIR || error_number == EINVAL ||
         error_number == ENOENT;
}

// Whether link_descriptor() will find it: not where /proc is not mounted.
bool can_be_linked(int fd) {
  char name[32];
  std::snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
  struct stat status{};
  return sys().lstat(name, &status) == 0;
}

// What stops a rename onto `old` is told before anything is written.
Status check_replaceable(const struct statx& old) {
  if (S_ISDIR(old.stx_mode)) return Status::system_error(EISDIR, "rename");
  if (!S_ISREG(old.stx_mode)) return Status::error(ErrorCode::kOption, "not a regular file");
  if ((old.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0) {
    return Status::system_error(EBUSY, "rename");  // bound to its place, as into a container
  }
  constexpr uint64_t kFixed = STATX_ATTR_IMMUTABLE | STATX_ATTR_APPEND;
  return (old.stx_attributes & kFixed) == 0 ? Status() : Status::system_error(EPERM, "rename");
}

// In a folder like /tmp, only the owners of a file and of the folder, and root, may replace it.
Status check_not_sticky(const std::string& path, const struct statx& old, uid_t user) {
  struct stat folder{};
  if (sys().lstat(os::folder_of(path).c_str(), &folder) != 0) {
    return Status::system_error(errno, "stat");
  }
  const bool may =
      (folder.st_mode & S_ISVTX) == 0 || user == 0 || user == old.stx_uid || user == folder.st_uid;
  return may ? Status() : Status::system_error(EPERM, "rename");
}

// The access control list of `path`; empty where there is none.
Result<std::vector<char>> acl_of(const std::string& path) {
  std::vector<char> acl(size_t{64} << 10);  // the most that an attribute may have
  const ssize_t size = sys().lgetxattr(path.c_str(), kAcl, acl.data(), acl.size());
  if (size < 0 && errno != ENODATA && errno != EOPNOTSUPP && errno != ENOSYS) {
    return Status::system_error(errno, "getxattr");
  }
  acl.resize(size < 0 ? 0 : static_cast<size_t>(size));
  return acl;
}

// Without one, also that which the folder gives to new files goes.
Status set_acl(int fd, const std::vector<char>& acl) {
  if (!acl.empty()) {
    return sys().fsetxattr(fd, kAcl, acl.data(), acl.size()) == 0
               ? Status()
               : Status::system_error(errno, "setxattr");
  }
  const bool gone = sys().fremovexattr(fd, kAcl) == 0 || errno == ENODATA || errno == EOPNOTSUPP ||
                    errno == ENOSYS;
  return gone ? Status() : Status::system_error(errno, "removexattr");
}

}  // namespace

Result<std::unique_ptr<NewFile>> NewFile::create(const std::string& path) {
  struct statx old{};
  const bool replaces = sys().lstatx(path.c_str(), &old) == 0;
  if (!replaces && errno != ENOENT) return Status::system_error(errno, "stat");
  if (replaces) PGALLOC_RETURN_IF_ERROR(check_replaceable(old));
  Result<std::unique_ptr<NewFile>> file = open(path, replaces ? kOwnerOnly : kAsUmaskSays);
  if (file.ok() && replaces) PGALLOC_RETURN_IF_ERROR((*file)->become_like(old));
  return file;
}

Result<std::unique_ptr<NewFile>> NewFile::open(const std::string& path, mode_t mode) {
  std::unique_ptr<NewFile> made(new NewFile(path));
  const auto opened = [&](const std::string& name, int flags) {
    return retry_interrupted(
        [&] { return sys().open(name.c_str(), flags | O_RDWR | O_CLOEXEC, mode); });
  };
  made->file_ = os::Descriptor(opened(os::folder_of(path), O_TMPFILE));
  if (made->file_.open()) {
    if (can_be_linked(made->file_.fd())) return made;
  } else if (!has_no_unnamed_files(errno)) {
    return Status::system_error(errno, "open");
  }
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    std::string temporary = temporary_name(path);
    const int fd = opened(temporary, O_CREAT | O_EXCL);
    if (fd >= 0) {
      made->temporary_ = std::move(temporary);
      made->file_ = os::Descriptor(fd);
      if (!made->file_.open()) return Status::system_error(errno, "fstat");
      return made;
    }
    if (errno != EEXIST) break;
  }
  return Status::system_error(errno, "open");
}

Status NewFile::become_like(const struct statx& old) {
  struct stat mine{};
  if (sys().fstat(file_.fd(), &mine) != 0) return Status::system_error(errno, "fstat");
  PGALLOC_RETURN_IF_ERROR(check_not_sticky(path_, old, mine.st_uid));
  Result<std::vector<char>> acl = acl_of(path_);
  if (!acl.ok()) return std::move(acl).status();
  mode_t mode = old.stx_mode & kPermissions;
  if (sys().fchown(file_.fd(), old.stx_uid, old.stx_gid) != 0) {
    // EINVAL: a user or group that this user namespace does not know.
    if (errno != EPERM && errno != EINVAL) return Status::system_error(errno, "fchown");
    if (sys().fchown(file_.fd(), static_cast<uid_t>(-1), old.stx_gid) != 0) {
      if (errno != EPERM && errno != EINVAL) return Status::system_error(errno, "fchown");
      mode &= ~kGroupPermissions;  // they were for another group
    }
  }
  PGALLOC_RETURN_IF_ERROR(set_acl(file_.fd(), *acl));
  return sys().fchmod(file_.fd(), mode) == 0 ? Status() : Status::system_error(errno, "fchmod");
}

NewFile::~NewFile() {
  // Not in a forked child: the name is the parent's.
  if (!temporary_.empty() && generation_ == process_generation()) {
    sys().unlink(temporary_.c_str());
  }
}

Status NewFile::publish() {
  if (!file_.intact()) return lost_image(file_.fd());
  if (retry_interrupted([&] { return sys().fsync(file_.fd()); }) != 0) {
    return Status::system_error(errno, "fsync");
  }
  // Opened while the old file is still in place.
  const std::string name = os::folder_of(path_);
  const os::Descriptor folder(retry_interrupted(
      [&] { return sys().open(name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0); }));
  if (!folder.open()) return Status::system_error(errno, "open");
  Status status = take_place();
  if (status.ok() && retry_interrupted([&] { return sys().fsync(folder.fd()); }) != 0) {
    status = Status::system_error(errno, "fsync");
  }
  return status;
}

Status NewFile::take_place() {
  if (temporary_.empty()) PGALLOC_RETURN_IF_ERROR(name_it());
  if (sys().rename(temporary_.c_str(), path_.c_str()) != 0) {
    return Status::system_error(errno, "rename");
  }
  temporary_.clear();
  return {};
}

Status NewFile::name_it() {
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    std::string temporary = temporary_name(path_);
    if (sys().link_descriptor(file_.fd(), temporary.c_str()) == 0) {
      temporary_ = std::move(temporary);
      return {};
    }
    if (errno != EEXIST) break;
  }
  return Status::system_error(errno, "link");
}

}  // namespace pgalloc
