// Packets that are none, and what an error becomes on its way.

#include "sharing/wire.h"

#include <errno.h>

#include "native/support.h"

namespace pgalloc::wire_test {
namespace {

using native_tests::FakeKernel;
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

TEST(pages_before_a_payload_are_inside_the_packet) {
  for (const uint16_t count : {0, 1, 2, 3, 65535}) {
    std::string packet;
    wire::append(packet, wire::kVersion, uint8_t{1}, count, uint32_t{5},
                 wire::Pages{1, pages(0, 1)}, wire::Pages{2, pages(1, 2)});
    std::string why = "fits";
    const auto parsed = wire::parse(packet, &why);
    EXPECT_EQ(parsed.has_value(), count <= 2);
    EXPECT_EQ(why, count <= 2 ? "fits" : "a malformed message");
    if (parsed) EXPECT_EQ(parsed->released, count * sizeof(wire::Pages));
    if (parsed) EXPECT_EQ(parsed->payload.size(), 2 * sizeof(wire::Pages));
  }
}

TEST(fields_are_read_in_their_order_and_all_of_them) {
  std::string bytes;
  wire::append(bytes, uint8_t{1}, uint16_t{2}, wire::Secret{3}, wire::Pages{4, pages(5, 6)});
  uint8_t one = 0;
  uint16_t two = 0;
  wire::Secret three{};
  wire::Pages four;
  EXPECT(wire::Reader(bytes).read_all(one, two, three, four));
  EXPECT_EQ(one, 1);
  EXPECT_EQ(two, 2);
  EXPECT_EQ(three[0], 3);
  EXPECT_EQ(four.file, 4u);
  EXPECT_EQ(four.range, pages(5, 6));
  EXPECT(!wire::Reader(bytes + "x").read_all(one, two, three, four));
  EXPECT(wire::Reader(bytes + "x").read(one, two, three, four));
  EXPECT(!wire::Reader(std::string_view(bytes).substr(1)).read(one, two, three, four));
}

ssize_t (*next_getrandom)(void*, size_t) = nullptr;
ssize_t getrandom_as_told(void* data, size_t size, unsigned) { return next_getrandom(data, size); }

TEST(a_secret_is_whole_or_there_is_none) {
  wire::Secret first{};
  wire::Secret second{};
  EXPECT(wire::make_secret(&first).ok());
  EXPECT(wire::make_secret(&second).ok());
  EXPECT(first != second);
  EXPECT(first != wire::Secret{});
  FakeKernel kernel;
  kernel.calls.getrandom = getrandom_as_told;
  kernel.begin();
  next_getrandom = [](void*, size_t) -> ssize_t { return errno = ENOSYS, -1; };
  EXPECT_EQ(wire::make_secret(&first).error_number(), ENOSYS);
  next_getrandom = [](void*, size_t size) -> ssize_t { return static_cast<ssize_t>(size) - 1; };
  EXPECT_EQ(wire::make_secret(&first).error_number(), EIO);
  next_getrandom = [](void*, size_t) -> ssize_t { return 0; };
  EXPECT_EQ(wire::make_secret(&first).error_number(), EIO);
  static int interrupts = 0;
  interrupts = 3;
  next_getrandom = [](void* data, size_t size) -> ssize_t {
    if (interrupts-- > 0) return errno = EINTR, -1;
    return os::kernel().getrandom(data, size, 0);
  };
  EXPECT(wire::make_secret(&first).ok());
}

TEST(texts_of_another_process_are_made_texts) {
  const auto code = static_cast<uint8_t>(wire::Error::kRange);
  EXPECT_EQ(wire::unpack_error(code, "plain \x7f").message(), "plain \x7f");
  EXPECT_EQ(wire::unpack_error(code, "caf\xc3\xa9").message(), "caf\xc3\xa9");
  EXPECT_EQ(wire::unpack_error(code, "caf\xc3").message(), "caf?");
  EXPECT_EQ(wire::unpack_error(code, "\x80z\xff").message(), "?z?");
  EXPECT_EQ(wire::unpack_error(code, std::string(1001, 'm')).message().size(), 1000u);
}

TEST(each_status_has_an_error_of_its_own) {
  EXPECT_EQ(wire::status_of({}), 0);
  EXPECT_EQ(wire::status_of(Status::error(ErrorCode::kAccount, "")),
            static_cast<uint8_t>(wire::Error::kSharing));
  const Status status = wire::unpack_error(123, "");
  EXPECT_EQ(status.message(), "the owner answered with the unknown status 123");
  // The number of the errno is as long as it is.
  const auto system = static_cast<uint8_t>(wire::Error::kSystem);
  EXPECT_EQ(wire::unpack_error(system, std::string(3, '\0')).code(), ErrorCode::kSharing);
  EXPECT_EQ(wire::unpack_error(system, std::string(4, '\0')).code(), ErrorCode::kSystem);
}

}  // namespace
}  // namespace pgalloc::wire_test
