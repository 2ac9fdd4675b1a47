#include "guard/kernel_file.h"

#include <errno.h>
#include <fcntl.h>

#include <charconv>

#include "os/retry.h"
#include "os/syscalls.h"

namespace pgalloc {

using os::retry_interrupted;
using os::sys;

namespace {

thread_local uint64_t without_descriptors = 0;

std::optional<uint64_t> number_at(std::string_view text) {
  uint64_t value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  if (result.ec != std::errc()) return std::nullopt;
  return value;
}

}  // namespace

os::Descriptor open_kernel_file(const std::string& path) {
  os::Descriptor file(
      retry_interrupted([&] { return sys().open(path.c_str(), O_RDONLY | O_CLOEXEC, 0); }));
  if (!file.open() && (errno == EMFILE || errno == ENFILE)) ++without_descriptors;
  return file;
}

uint64_t opens_without_descriptors() { return without_descriptors; }

KernelText::KernelText(const os::Descriptor& file) {
  if (!file.open()) return;
  const ssize_t size =
      retry_interrupted([&] { return sys().pread(file.fd(), buffer_.data(), buffer_.size(), 0); });
  if (size > 0) text_ = {buffer_.data(), static_cast<size_t>(size)};
}

std::optional<uint64_t> KernelText::number() const { return number_at(text_); }

std::optional<uint64_t> KernelText::number_of(std::string_view name) const {
  for (size_t at = text_.find(name); at != std::string_view::npos; at = text_.find(name, at + 1)) {
    if (at != 0 && text_[at - 1] != '\n') continue;
    const std::string_view rest = text_.substr(at + name.size());
    const size_t digits = rest.find_first_not_of(' ');
    if (digits == 0 || digits == std::string_view::npos) continue;
    return number_at(rest.substr(digits));
  }
  return std::nullopt;
}

std::optional<uint64_t> number_in(const std::string& path) {
  return KernelText(open_kernel_file(path)).number();
}

std::optional<std::string> whole_file(const std::string& path) {
  const os::Descriptor file = open_kernel_file(path);
  if (!file.open()) return std::nullopt;
  std::string text;
  while (true) {
    constexpr size_t kPiece = 16384;
    const size_t at = text.size();
    text.resize(at + kPiece);
    const ssize_t size = retry_interrupted(
        [&] { return sys().pread(file.fd(), text.data() + at, kPiece, static_cast<off_t>(at)); });
    if (size < 0) return std::nullopt;
    text.resize(at + static_cast<size_t>(size));
    if (size == 0) return text;
  }
}

}  // namespace pgalloc
