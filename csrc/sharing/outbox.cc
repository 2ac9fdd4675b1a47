#include "sharing/outbox.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <new>

namespace pgalloc {

using wire::Op;

namespace {

constexpr size_t kPartMax = wire::kPacketBytesMax - sizeof(wire::Header);

// Whether pages of that size can be given back in this packet, too: nothing comes before the parts of
// a payload, and all of it has to fit.
bool takes_along(std::string_view packet, size_t pages_size) {
  if (packet.empty()) return false;
  if (pages_size == 0) return true;
  const auto op = static_cast<Op>(packet[offsetof(wire::Header, kind)]);
  return op != Op::kPart && op != Op::kHello && packet.size() + pages_size <= wire::kPacketBytesMax;
}

}  // namespace

void Outbox::add(Op op, uint32_t number, std::string_view payload) {
  std::list<Item> items;
  for (; payload.size() > kPartMax; payload.remove_prefix(kPartMax)) {
    const auto part = static_cast<uint8_t>(Op::kPart);
    items.push_back({wire::pack(part, 0, payload.substr(0, kPartMax)), {}});
  }
  items.push_back({wire::pack(static_cast<uint8_t>(op), number, payload), {}});
  waiting_.splice(waiting_.end(), items);
}

void Outbox::add(const wire::Pages& pages) try {
  waiting_.push_back({{}, pages});
} catch (const std::bad_alloc&) {
  if (spares_.empty()) throw;
  spares_.front().pages = pages;
  waiting_.splice(waiting_.end(), spares_, spares_.begin());
}

void Outbox::drop_spares(size_t count) {
  spares_.resize(spares_.size() - std::min(count, spares_.size()));
}

Endpoint::Io Outbox::send_next(const Endpoint& socket) {
  constexpr size_t kPagesMax = 128;
  struct {
    wire::Header header{wire::kVersion, static_cast<uint8_t>(Op::kRelease), 0, 0};
    std::array<wire::Pages, kPagesMax> pages;
  } head;
  static_assert(offsetof(decltype(head), pages) == sizeof(wire::Header));
  size_t count = 0;
  auto item = waiting_.begin();
  for (; count < kPagesMax && item != waiting_.end() && item->packet.empty(); ++item) {
    head.pages[count++] = item->pages;
  }
  std::string_view rest;
  const size_t pages_size = count * sizeof(wire::Pages);
  if (item != waiting_.end() && takes_along(item->packet, pages_size)) {
    rest = item->packet;
    std::memcpy(&head.header, rest.data(), sizeof head.header);
    head.header.released = static_cast<uint16_t>(count);
    rest.remove_prefix(sizeof head.header);
    ++item;
  }
  int error = 0;
  const std::string_view front(reinterpret_cast<const char*>(&head),
                               sizeof head.header + pages_size);
  const Endpoint::Io result = socket.send(front, rest, -1, &error);
  if (result == Endpoint::Io::kDone) waiting_.erase(waiting_.begin(), item);
  return result;
}

}  // namespace pgalloc
