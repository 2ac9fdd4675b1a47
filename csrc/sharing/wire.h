// Purpose: what peers and the owner of pages say to each other: packets on a Unix socket.
//
// Thread safety: values only.
//
// A packet of a SOCK_SEQPACKET socket arrives whole or not at all. It has a header (version, what it
// is, the number of the request) and a payload of fixed fields. A peer numbers its requests from 1;
// the answer has the same number. Number 0 asks for no answer. Both processes run on one machine, so
// numbers are in its byte order.
//
// Invariant: what is read here was sent by a process that may lie. Nothing is used before it was
// checked, and what does not fit is refused as a whole.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

#include "base/status.h"
#include "base/units.h"

namespace pgalloc::wire {

inline constexpr uint8_t kVersion = 1;
// A packet fits into the smallest send buffer that Linux gives a socket (SOCK_MIN_SNDBUF, 4608 bytes).
inline constexpr size_t kPacketBytesMax = 4096;
inline constexpr size_t kPayloadBytesMax =
    (size_t{1} << 20) + 4096;  // of several packets; a key has 1 MiB

// What a peer asks for. Payloads and answers are named beside each.
enum class Op : uint8_t {
  kHello = 1,  // process (u32; the kernel knows better), secret -> process of the owner (u32)
  kOpen = 2,   // file (u64) -> file, capacity (u64), read-only (u8), label; and a descriptor
  kClaim =
      3,  // secret of an offer -> pages; and, as a rule, if it is the first of a file, all that
          // kOpen brings
  kOffer = 4,  // pages -> secret
  kAllocate =
      5,  // file, length (u64), kind, direction (u8), memory cgroup (u32), a wish for huge pages
          // (u8) -> pages, and if there is such a wish whether it came true (u8)
  kRelease = 6,   // any number of pages, without an answer
  kDecommit = 7,  // pages ->
  kUnique = 8,    // pages -> u8
  kUnpin = 9,     // pages -> u8
  kPin = 10,      // pages -> whether the contents are what they were (u8)
  kUsage = 11,    // file, memory cgroup (u32; 0: all) -> bytes of each kind (6 x u64)
  kFork = 12,     // -> a connection for a child, with the same leases
  kPing = 13,     // -> process of the owner
  kServed = 14,   // -> file, whether there is a cache (u8)
  kCache =
      15,  // what is wanted of a cache (u8, a CacheCall), which one (u64; 0: the one that is served), arguments ->
           // see there
  kPart = 16,  // the beginning of a payload that is too long for one packet, without an answer; the
               // next packet goes on
  kMakeRoom = 17,  // bytes, and those of the whole commit (u64) -> how many were given back (u64):
                   // discards what counts against the peer's limits, until the commit fits
};

// Of a cache. Arguments and answers are named beside each. From kPut on the first argument is the number that kAttach
// has brought. Keys and tags are encoded (binding/cache_keys.h), and come after their lengths (u32).
enum class CacheCall : uint8_t {
  kIndex =
      1,  // -> what limits it (u64; all bits: nothing), its policy (u8), which one it is (u64); and its file, which
          // only the owner writes
  kAttach =
      2,  // -> the number of this process, and a file in which it says what it holds, and puts values
  kDetach = 3,  // that number -> it holds nothing any more
  kPut =
      4,  // bits: only if there is none (1), there is a tag (2), a part of the value is in the file (4), others
  // came before it (8) (u8); for how long (u64, ns; 0: ever); key, tag, length of the value (u64), the
  // value -> whether it was set (u8: 0 not, 1 it was, 2 it is too large: what it would count for, u64)
  kPutPart =
      5,  // length of the value (u64), where this part begins in it (u64), its length (u64) ->
  kRemove = 6,        // key -> whether there was one (u8)
  kRemoveTagged = 7,  // tag -> how many (u64)
  kClear = 8,         // ->
  kEvict = 9,         // bytes (u64) -> how many were given up (u64)
  kTake =
      10,  // key -> whether there was one (u8), where it is: place, length (u64), holder (u32), which is held
  kTakeNext = 11,  // -> the same, and the key
  kStats = 12,     // -> the fields of StoreStats
  kIncrement =
      13,  // bits: there is a first value (1) (u8), by how much, that first value (i64), key -> what became of it
           // (u8: 0 there is none, 1 it was done, 2 it is no number), the number (i64)
  kTouch = 14,  // for how long (u64, ns), key -> whether there was one (u8)
};

// The status of an answer: 0, or what went wrong. The text is the payload; kSystem has the errno
// (i32) before it.
enum class Error : uint8_t {
  kRange = 1,
  kOption,
  kRefCount,
  kOutOfMemory,
  kClosed,
  kForked,
  kSharing,
  kPermission,
  kSystem,
  kNoMemory,
};

using Secret = std::array<uint8_t, 16>;
Status make_secret(Secret* secret);

// Pages of a file, on the wire.
struct Pages {
  uint64_t file = 0;
  FileRange range;
};

struct Header {
  uint8_t version;
  uint8_t kind;       // Op, or the status of an answer
  uint16_t released;  // a request: so many pages come before its payload, and are given back first
  uint32_t number;
};
static_assert(sizeof(Header) == 8);

struct Packet {
  uint8_t kind = 0;
  uint32_t number = 0;
  size_t released = 0;  // bytes at the front of `payload`
  std::string_view payload;
};

// The parts of a packet; nothing, and why not unless that is nullptr, for what is none.
std::optional<Packet> parse(std::string_view bytes, std::string* why);

// Appends fields: numbers, secrets, pages; text only as the last one.
template <class... Fields>
void append(std::string& out, const Fields&... fields) {
  [[maybe_unused]] const auto one = [&out](const auto& field) {
    using Field = std::decay_t<decltype(field)>;
    if constexpr (std::is_same_v<Field, Pages>) {
      append(out, field.file, field.range.start, field.range.end);
    } else if constexpr (std::is_convertible_v<Field, std::string_view>) {
      out.append(std::string_view(field));
    } else {
      static_assert(std::is_integral_v<Field> || std::is_same_v<Field, Secret>);
      out.append(reinterpret_cast<const char*>(&field), sizeof field);
    }
  };
  (one(fields), ...);
}

// A whole packet.
template <class... Fields>
std::string pack(uint8_t kind, uint32_t number, const Fields&... fields) {
  std::string packet;
  append(packet, kVersion, kind, uint16_t{0}, number, fields...);
  return packet;
}

// Takes a payload apart.
class Reader {
 public:
  explicit Reader(std::string_view payload) : left_(payload) {}

  // False, and nothing more can be read, if the payload is too short.
  template <class... Fields>
  bool read(Fields&... fields) {
    return (one(fields) && ...);
  }
  // The same, and nothing is left.
  template <class... Fields>
  bool read_all(Fields&... fields) {
    return read(fields...) && left_.empty();
  }
  std::string_view left() const { return left_; }

 private:
  bool one(Pages& pages) { return read(pages.file, pages.range.start, pages.range.end); }
  template <class Field>
  bool one(Field& field) {
    static_assert(std::is_integral_v<Field> || std::is_same_v<Field, Secret>);
    if (left_.size() < sizeof field) {
      left_ = {};
      return false;
    }
    left_.copy(reinterpret_cast<char*>(&field), sizeof field);
    left_.remove_prefix(sizeof field);
    return true;
  }

  std::string_view left_;
};

// An answer that stands for an error: its status (0 if there is none) and its payload; and back.
uint8_t status_of(const Status& status);
std::string error_payload(const Status& status);
std::string pack_error(uint32_t number, const Status& status);
Status unpack_error(uint8_t status, std::string_view payload);

}  // namespace pgalloc::wire
