// Packets that are none, and what an error becomes on its way.

#include "sharing/wire.h"

#include "native/support.h"

namespace pgalloc::wire_test {
namespace {

using native_tests::pages;
using native_tests::Random;

TEST(a_packet_is_what_was_packed) {
  const std::string packet = wire::pack(7, 0x01020304, uint64_t{5}, std::string_view("rest"));
  const auto parsed = wire::parse(packet, nullptr);
  EXPECT(parsed.has_value());
  EXPECT_EQ(parsed->kind, 7);
  EXPECT_EQ(parsed->number, 0x01020304u);
  wire::Reader reader(parsed->payload);
  uint64_t five = 0;
  EXPECT(reader.read(five));
  EXPECT_EQ(five, 5u);
  EXPECT_EQ(reader.left(), "rest");
  EXPECT(!reader.read(five));
  EXPECT(reader.left().empty());
}

TEST(what_is_no_packet_is_refused) {
  const std::string good = wire::pack(1, 1);
  std::string why;
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT(!wire::parse(std::string_view(good).substr(0, size), &why));
    EXPECT(!why.empty());
  }
  EXPECT(wire::parse(good + std::string(wire::kPacketBytesMax - good.size(), 'x'), &why));
  EXPECT(!wire::parse(good + std::string(wire::kPacketBytesMax - good.size() + 1, 'x'), &why));
  for (const size_t at : {0, 2, 3}) {  // the version, and what is zero
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] + 1);
    EXPECT(!wire::parse(bad, &why));
  }
}

TEST(random_bytes_are_refused_or_read) {
  Random random(1);
  for (int i = 0; i < 20000; ++i) {
    std::string bytes(random.below(64), '\0');
    for (char& byte : bytes) byte = static_cast<char>(random.below(random.one_in(2) ? 2 : 256));
    const auto parsed = wire::parse(bytes, nullptr);
    if (!parsed) continue;
    wire::Pages read;
    const bool whole = wire::Reader(parsed->payload).read_all(read);
    EXPECT_EQ(whole, parsed->payload.size() == sizeof read);
  }
}

TEST(errors_arrive_as_they_were_sent) {
  for (const auto code : {ErrorCode::kRange, ErrorCode::kOption, ErrorCode::kRefCount,
                          ErrorCode::kOutOfMemory, ErrorCode::kClosed, ErrorCode::kForked,
                          ErrorCode::kSharing, ErrorCode::kPermission, ErrorCode::kNoMemory}) {
    const std::string packet = wire::pack_error(3, Status::error(code, std::string(2000, 'm')));
    const auto parsed = wire::parse(packet, nullptr);
    const Status status = wire::unpack_error(parsed->kind, parsed->payload);
    EXPECT_EQ(status.code(), code);
    EXPECT_EQ(status.message().size(), 1000u);  // bounded
  }
  const std::string packet = wire::pack_error(3, Status::system_error(ENOSPC, "fallocate"));
  const auto parsed = wire::parse(packet, nullptr);
  EXPECT_EQ(wire::unpack_error(parsed->kind, parsed->payload).error_number(), ENOSPC);
  EXPECT_EQ(wire::unpack_error(parsed->kind, "").code(), ErrorCode::kSharing);
  EXPECT_EQ(wire::unpack_error(200, "").code(), ErrorCode::kSharing);
}

}  // namespace
}  // namespace pgalloc::wire_test
