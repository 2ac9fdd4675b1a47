#include "sharing/door.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <utility>

#include "os/syscalls.h"
#include "sharing/wire.h"

namespace pgalloc {

using os::sys;

Endpoint Door::open() {
  Endpoint socket = listen();
  if (!socket.open()) return socket;
  Descriptor file(sys().open(name_.c_str(), O_PATH | O_CLOEXEC, 0));
  (void)unlink();
  if (!file.open()) return {};
  path_ = "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(file.fd());
  file_ = std::move(file);
  return socket;
}

Endpoint Door::listen() {
  wire::Secret random{};
  if (!unlink() || !wire::make_secret(&random).ok()) return {};
  uint64_t unique = 0;
  std::memcpy(&unique, random.data(), sizeof unique);
  char name[64];
  std::snprintf(name, sizeof name, "/tmp/.pgalloc-%016llx",
                static_cast<unsigned long long>(unique));
  name_ = name;  // before there is a file: it is not lost with the memory for its name
  const int fd = sys().listen_at(name_.data(), name_.size());
  if (fd < 0) name_.clear();
  Endpoint socket(fd);
  if (!socket.open()) (void)unlink();
  return socket;
}

void Door::close() {
  file_.close();
  path_.clear();
  (void)unlink();
}

// False if there is a file that could not be unlinked.
bool Door::unlink() {
  if (name_.empty()) return true;
  if (sys().unlink(name_.c_str()) != 0 && errno != ENOENT) return false;
  name_.clear();
  return true;
}

}  // namespace pgalloc
