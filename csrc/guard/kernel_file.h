// Purpose: the kernel's short text files (procfs, cgroups): read whole, and what their lines say.
//
// Thread safety: values only.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "os/descriptor.h"

namespace pgalloc {

// "Unlimited" in v1 is LONG_MAX rounded down to a page. No machine has 2^62 bytes.
inline constexpr uint64_t kUnlimited = uint64_t{1} << 62;

// Not open if it cannot be opened.
os::Descriptor open_kernel_file(const std::string& path);
// How often that failed in this thread because no descriptor could be had: then the file may be there.
uint64_t opens_without_descriptors();

// What a file says at the moment: at most 8 KiB (memory.stat of Linux 6 has about 2, meminfo 1.5).
// Allocates nothing.
class KernelText {
 public:
  explicit KernelText(const os::Descriptor& file);

  std::string_view text() const { return text_; }
  // Of "123\n"; nothing for "max\n" or an unreadable file.
  std::optional<uint64_t> number() const;
  // Of the line "<name> 123" or "<name>   123 kB".
  std::optional<uint64_t> number_of(std::string_view name) const;

 private:
  std::array<char, 8192> buffer_;
  std::string_view text_;
};

// Of a file that is opened for this alone.
std::optional<uint64_t> number_in(const std::string& path);
// A file of any length; nothing if it cannot be read.
std::optional<std::string> whole_file(const std::string& path);

}  // namespace pgalloc
