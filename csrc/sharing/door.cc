#include "sharing/door.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <utility>

#include "os/syscalls.h"
#include "sharing/brief_files.h"

namespace pgalloc {

using os::sys;

namespace {
constexpr const char* kFolder = "/tmp";
}

Endpoint Door::open() {
  Endpoint socket = listen();
  if (!socket.open()) return socket;
  os::Descriptor file(sys().open(name_.c_str(), O_PATH | O_CLOEXEC, 0));
  (void)unlink();
  if (!file.open()) return {};
  path_ = "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(file.fd());
  file_ = std::move(file);
  return socket;
}

Endpoint Door::listen() {
  remove_left_files(kFolder);
  const Result<std::string> name = name_of_brief_file();
  if (!unlink() || !name.ok()) return {};
  // Before there is a file: it is not lost with the memory for its name.
  name_ = std::string(kFolder) + "/" + *name;
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
