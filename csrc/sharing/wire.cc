#include "sharing/wire.h"

#include <errno.h>

#include <iterator>

#include "image/utf8.h"
#include "os/retry.h"
#include "os/syscalls.h"

namespace pgalloc::wire {
namespace {

constexpr size_t kTextMax = 1000;

struct Pair {
  ErrorCode code;
  Error error;
};
constexpr Pair kErrors[] = {
    {ErrorCode::kRange, Error::kRange},       {ErrorCode::kOption, Error::kOption},
    {ErrorCode::kRefCount, Error::kRefCount}, {ErrorCode::kOutOfMemory, Error::kOutOfMemory},
    {ErrorCode::kClosed, Error::kClosed},     {ErrorCode::kForked, Error::kForked},
    {ErrorCode::kSharing, Error::kSharing},   {ErrorCode::kPermission, Error::kPermission},
    {ErrorCode::kSystem, Error::kSystem},     {ErrorCode::kNoMemory, Error::kNoMemory},
};
static_assert(std::size(kErrors) == static_cast<size_t>(Error::kNoMemory));

// A text of another process: what is no text is made one.
std::string as_text(std::string_view bytes) {
  std::string text(bytes.substr(0, kTextMax));
  if (image::is_utf8(text)) return text;
  for (char& byte : text) {
    if ((static_cast<unsigned char>(byte) & 0x80) != 0) byte = '?';
  }
  return text;
}

}  // namespace

Status make_secret(Secret* secret) {
  const ssize_t filled =
      os::retry_interrupted([&] { return os::sys().getrandom(secret->data(), secret->size(), 0); });
  if (filled == static_cast<ssize_t>(secret->size())) return {};
  return Status::system_error(filled < 0 ? errno : EIO, "getrandom");
}

std::optional<Packet> parse(std::string_view bytes, std::string* why) {
  const auto refuse = [why](const auto&... parts) {
    if (why != nullptr) *why = (std::string() + ... + parts);
    return std::nullopt;
  };
  Header header;
  if (bytes.size() < sizeof header || bytes.size() > kPacketBytesMax) {
    return refuse("a message of ", std::to_string(bytes.size()), " bytes");
  }
  std::memcpy(&header, bytes.data(), sizeof header);
  if (header.version != kVersion) {
    return refuse("version ", std::to_string(header.version), " of the sharing protocol, not ",
                  std::to_string(kVersion));
  }
  const size_t released = header.released * sizeof(Pages);
  if (released > bytes.size() - sizeof header) return refuse("a malformed message");
  return Packet{header.kind, header.number, released, bytes.substr(sizeof header)};
}

uint8_t status_of(const Status& status) {
  if (status.ok()) return 0;
  for (const Pair& pair : kErrors) {
    if (pair.code == status.code()) return static_cast<uint8_t>(pair.error);
  }
  return static_cast<uint8_t>(Error::kSharing);
}

std::string error_payload(const Status& status) {
  const std::string text = status.describe().substr(0, kTextMax);
  std::string payload;
  if (status.code() == ErrorCode::kSystem) append(payload, int32_t{status.error_number()});
  append(payload, std::string_view(text));
  return payload;
}

std::string pack_error(uint32_t number, const Status& status) {
  return pack(status_of(status), number, std::string_view(error_payload(status)));
}

Status unpack_error(uint8_t status, std::string_view payload) {
  Reader reader(payload);
  if (status == static_cast<uint8_t>(Error::kSystem)) {
    int32_t error_number = 0;
    if (!reader.read(error_number)) return Status::error(ErrorCode::kSharing, "a malformed answer");
    return Status::system_error(error_number, "the owner of these pages");
  }
  for (const Pair& pair : kErrors) {
    if (static_cast<uint8_t>(pair.error) == status) {
      return Status::error(pair.code, as_text(payload));
    }
  }
  return Status::error(ErrorCode::kSharing,
                       "the owner answered with the unknown status " + std::to_string(status));
}

}  // namespace pgalloc::wire
