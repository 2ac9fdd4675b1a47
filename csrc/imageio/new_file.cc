#include "imageio/new_file.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <random>

#include "os/path.h"
#include "os/retry.h"
#include "os/syscalls.h"

namespace pgalloc {

using os::retry_interrupted;
using os::sys;

namespace {

constexpr mode_t kOwnerOnly = 0600;  // it holds the contents of a program's memory
constexpr int kAttempts = 100;

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

}  // namespace

Result<std::unique_ptr<NewFile>> NewFile::create(const std::string& path) {
  const int unnamed = retry_interrupted([&] {
    return sys().open(os::folder_of(path).c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, kOwnerOnly);
  });
  if (unnamed >= 0) return std::unique_ptr<NewFile>(new NewFile(path, unnamed, ""));
  if (!has_no_unnamed_files(errno)) return Status::system_error(errno, "open");
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    std::string temporary = temporary_name(path);
    const int fd = retry_interrupted([&] {
      return sys().open(temporary.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, kOwnerOnly);
    });
    if (fd >= 0) return std::unique_ptr<NewFile>(new NewFile(path, fd, std::move(temporary)));
    if (errno != EEXIST) break;
  }
  return Status::system_error(errno, "open");
}

NewFile::~NewFile() {
  // Not in a forked child: the name is the parent's.
  if (!temporary_.empty() && generation_ == process_generation()) {
    sys().unlink(temporary_.c_str());
  }
  sys().close(fd_);
}

Status NewFile::publish() {
  if (retry_interrupted([&] { return sys().fsync(fd_); }) != 0) {
    return Status::system_error(errno, "fsync");
  }
  // Opened while the old file is still in place.
  const int folder = retry_interrupted([&] {
    return sys().open(os::folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  });
  if (folder < 0) return Status::system_error(errno, "open");
  Status status = take_place();
  if (status.ok() && retry_interrupted([&] { return sys().fsync(folder); }) != 0) {
    status = Status::system_error(errno, "fsync");
  }
  sys().close(folder);
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
    if (sys().link_descriptor(fd_, temporary.c_str()) == 0) {
      temporary_ = std::move(temporary);
      return {};
    }
    if (errno != EEXIST) break;
  }
  return Status::system_error(errno, "link");
}

}  // namespace pgalloc
