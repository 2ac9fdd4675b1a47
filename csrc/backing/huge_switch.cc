#include "backing/huge_switch.h"

#include <fcntl.h>

#include <array>
#include <string>
#include <utility>

#include "base/units.h"
#include "os/syscalls.h"

namespace pgalloc {

using os::sys;

namespace {

// The choice in brackets, of "always within_size [advise] never"; empty if the file cannot be read.
std::string choice_in(const std::string& path) {
  const int fd = sys().open(path.c_str(), O_RDONLY | O_CLOEXEC, 0);
  if (fd < 0) return {};
  std::array<char, 256> buffer;
  const ssize_t size = sys().pread(fd, buffer.data(), buffer.size(), 0);
  sys().close(fd);
  if (size <= 0) return {};
  const std::string text(buffer.data(), static_cast<size_t>(size));
  const size_t open = text.find('[');
  const size_t close = text.find(']', open);
  if (open == text.npos || close == text.npos) return {};
  return text.substr(open + 1, close - open - 1);
}

bool gives(const std::string& choice) {
  return choice == "always" || choice == "within_size" || choice == "advise" || choice == "force";
}

}  // namespace

HugeSwitch huge_switch_of_shmem(const std::string& folder) {
  std::string path = folder + "/shmem_enabled";
  std::string choice = choice_in(path);
  // Since Linux 6.11 each size of pages has a switch of its own, which decides unless it inherits. But
  // "deny" is for all.
  const std::string size = std::to_string(huge_page_size() / 1024);
  std::string own = folder + "/hugepages-" + size + "kB/shmem_enabled";
  std::string own_choice = choice_in(own);
  if (choice != "deny" && !own_choice.empty() && own_choice != "inherit") {
    path = std::move(own);
    choice = std::move(own_choice);
  }
  const bool given = gives(choice);
  return {std::move(path), std::move(choice), given};
}

}  // namespace pgalloc
