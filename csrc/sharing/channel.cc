#include "sharing/channel.h"

#include <errno.h>
#include <sys/epoll.h>

#include <utility>

#include "os/syscalls.h"

namespace pgalloc {

namespace {

// The kernel is short of memory, or too many descriptors are on their way: it is asked again.
constexpr std::chrono::milliseconds kPause{2};
constexpr int kRefusalsMax = 5000;

}  // namespace

Channel::~Channel() {
  for (auto& request : requests_) {
    if (session_ != nullptr) session_->give_up(*request);
  }
  for (Kept& kept : kept_) close_descriptor(kept);
}

void Channel::close_descriptor(Kept& kept) {
  if (kept.descriptor >= 0) os::sys().close(kept.descriptor);
  kept.descriptor = -1;
}

Channel::Read Channel::read(Buffer& buffer, wire::Packet* packet, std::string* why,
                            SteadyTime now) {
  size_t size = 0;
  int error = 0;
  switch (socket_.receive(buffer.data(), buffer.size(), &size, &error)) {
    case Endpoint::Io::kDone: break;
    case Endpoint::Io::kAgain: return Read::kNothing;
    case Endpoint::Io::kRefused: not_before_ = now + kPause; return Read::kNothing;
    case Endpoint::Io::kEnded:
    case Endpoint::Io::kLost: return Read::kEnded;
  }
  const auto parsed = wire::parse({buffer.data(), size}, why);
  if (!parsed) return Read::kMalformed;
  *packet = *parsed;
  return Read::kPacket;
}

bool Channel::keep_part(std::string_view part) {
  if (part.size() > wire::kPayloadBytesMax - parts_.size()) return false;
  parts_.append(part);
  return true;
}

Request& Channel::begin(const wire::Packet& packet) {
  auto request = std::make_unique<Request>();
  request->op = static_cast<wire::Op>(packet.kind);
  request->number = packet.number;
  request->payload = std::exchange(parts_, {});
  request->payload.append(packet.payload);
  requests_.push_back(std::move(request));
  return *requests_.back();
}

bool Channel::answer(uint32_t number, Answer answer, SteadyTime now) {
  Kept kept{.descriptor = answer.descriptor, .number = number};
  if (number == 0) {
    close_descriptor(kept);
    return true;
  }
  try {
    kept.packet = answer.status.ok() ? wire::pack(0, number, std::string_view(answer.payload))
                                     : wire::pack_error(number, answer.status);
    kept_.push_back(std::move(kept));
  } catch (...) {
    close_descriptor(kept);
    throw;
  }
  return kept_.size() > 1 || send_kept(now);
}

bool Channel::send_kept(SteadyTime now) {
  while (!kept_.empty()) {
    Kept& kept = kept_.front();
    int error = 0;
    switch (socket_.send(kept.packet, kept.descriptor, &error)) {
      case Endpoint::Io::kDone: break;
      case Endpoint::Io::kAgain: return true;
      case Endpoint::Io::kEnded:
      case Endpoint::Io::kLost: return false;
      case Endpoint::Io::kRefused:
        not_before_ = now + kPause;
        if (++kept.refusals <= kRefusalsMax) return true;
        // It costs this request, and no other.
        close_descriptor(kept);
        kept.packet = wire::pack_error(kept.number, Status::system_error(error, "sendmsg"));
        kept.refusals = 0;
        return true;
    }
    close_descriptor(kept);
    kept_.pop_front();
  }
  return true;
}

uint32_t Channel::wanted_events() const {
  if (!kept_.empty()) return EPOLLOUT;
  return requests_.size() < session_->scope.limits.requests ? uint32_t{EPOLLIN} : 0;
}

}  // namespace pgalloc
