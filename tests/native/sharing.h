// Purpose: what tests of the broker share: a file, both ends of a connection, and the broker's rounds,
// one at a time, without its thread.
//
// Thread safety: externally synchronised.
#pragma once

#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "file/memory_file.h"
#include "native/memory.h"
#include "native/support.h"
#include "sharing/peers.h"

namespace pgalloc::native_tests {

inline std::shared_ptr<MemoryFile> make_file() {
  MemoryFileOptions options;
  options.capacity = kChunkSize;
  return std::move(*MemoryFile::create(std::monostate{}, options));
}
// The lowest free pages, with one reference.
inline FileRange take_pages(MemoryFile& file, uint64_t count) {
  bool must_wait = false;
  const auto range = file.allocate({.length = count * page_size()}, false, &must_wait);
  return EXPECT(range.ok()) ? *range : FileRange{};
}

// Takes over a lease on the pages, which ends if they cannot be offered.
inline Result<wire::Secret> add_or_drop(Offers& offers, const Offer& offer,
                                        std::optional<uint64_t> bytes_max = std::nullopt) {
  try {
    Result<wire::Secret> secret = offers.add(offer, bytes_max);
    if (!secret.ok()) drop(offer);
    return secret;
  } catch (const std::bad_alloc&) {
    drop(offer);
    throw;
  }
}
// What is on offer ends.
inline void drop_all(Offers& offers) {
  while (!offers.empty()) drop(offers.take_any());
  offers.drop_some(SIZE_MAX);
}

inline size_t descriptor_count() {
  const std::filesystem::directory_iterator open("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(open), end(open)));
}

// What a peer has of its connection.
class Client {
 public:
  explicit Client(int fd) : fd_(fd) {}
  ~Client() { close(); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  int fd() const { return fd_; }
  bool send(std::string_view packet) const {
    return ::send(fd_, packet.data(), packet.size(), MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
  }
  // The next answer: its status and payload. Nothing if there is none yet; descriptors are closed.
  std::optional<std::pair<uint8_t, std::string>> receive() {
    std::string packet(1 << 16, '\0');
    iovec part{packet.data(), packet.size()};
    alignas(cmsghdr) char room[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = room;
    message.msg_controllen = sizeof room;
    const ssize_t got = ::recvmsg(fd_, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    ended = got == 0 || (got < 0 && errno == ECONNRESET);
    if (got <= 0) return std::nullopt;
    if (const cmsghdr* const rights = CMSG_FIRSTHDR(&message); rights != nullptr) {
      int descriptor = -1;
      std::memcpy(&descriptor, CMSG_DATA(rights), sizeof descriptor);
      ::close(descriptor);
      ++descriptors;
    }
    packet.resize(static_cast<size_t>(got));
    const auto parsed = wire::parse(packet, nullptr);
    if (!EXPECT(parsed.has_value())) return std::nullopt;
    return std::pair(parsed->kind, std::string(parsed->payload));
  }

  bool ended = false;
  int descriptors = 0;

 private:
  int fd_;
};

// The broker without its thread.
struct Hub {
  Hub() { peers.own_peers_end = true; }

  void round() {
    auto now = std::chrono::steady_clock::now();
    allocations_left = fails_after;
    try {
      auto look = peers.departed().next_look(now);
      if (look) {
        look->take();
        peers.departed().looked(*look, now);
      }
      const Peers::Wait wait = peers.prepare(now);
      (void)peers.take_let_go();
      std::array<epoll_event, 16> events;
      const int count = wait.epoll < 0 ? 0 : os::sys().epoll_wait(wait.epoll, events.data(), 16, 0);
      now = std::chrono::steady_clock::now();
      for (int i = 0; i < count; ++i) peers.handle(events[static_cast<size_t>(i)], now);
      peers.work(now);
    } catch (const std::bad_alloc&) {
      fails_after = -1;
    }
    fails_after = std::exchange(allocations_left, -1);
    (void)peers.take_let_go();
  }
  // Rounds until it is so. False if that takes too long.
  template <class Condition>
  bool until(Condition condition) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > end) return false;
      round();
    }
    return true;
  }
  // A connection that a forked child would have.
  std::unique_ptr<Client> child(Scope scope = {}) {
    int pair[2];
    EXPECT_EQ(os::kernel().socketpair(pair), 0);
    auto session = std::make_unique<Session>(peers.next_number(), peers.offers(), std::move(scope),
                                             ::getpid(), ::getuid());
    (void)peers.add_child(Endpoint(pair[0]),
                          std::move(session));  // if it fails, the client sees that
    return std::make_unique<Client>(pair[1]);
  }
  // The answer to a request; nothing if the connection has ended.
  template <class... Fields>
  std::optional<std::pair<uint8_t, std::string>> ask(Client& client, wire::Op op,
                                                     const Fields&... fields) {
    std::optional<std::pair<uint8_t, std::string>> answer;
    if (!client.send(wire::pack(static_cast<uint8_t>(op), 1, fields...))) return answer;
    EXPECT(until([&] { return (answer = client.receive()) || client.ended; }));
    return answer;
  }
  bool idle() { return peers.channel_count() == 0 && peers.departed().size() == 0; }

  Peers peers;
  int64_t fails_after = -1;  // so many allocations of rounds to come (memory.h)
};

}  // namespace pgalloc::native_tests
