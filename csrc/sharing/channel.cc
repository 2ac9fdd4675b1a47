#include "sharing/channel.h"

#include <errno.h>
#include <sys/epoll.h>

#include <chrono>
#include <new>
#include <utility>

namespace pgalloc {

namespace {

// The kernel is short of memory, or too many descriptors are on their way: it is asked again.
constexpr std::chrono::milliseconds kPause{2};
constexpr int kRefusalsMax = 5000;
// The kernel limits how many descriptors of a user are on their way: unix(7), ETOOMANYREFS. A peer that
// does not read leaves most of them to the others.
constexpr int kDescriptorsUnreadMax = 4;

// In words if memory suffices.
std::string text_of(const Status& status) try {
  return wire::error_payload(status);
} catch (const std::bad_alloc&) {
  return {};
}

}  // namespace

Channel::~Channel() { (void)take_session(); }

std::unique_ptr<Session> Channel::take_session() noexcept {
  if (session_ != nullptr) {
    for (Request& request : requests_) session_->give_up(request);
  }
  requests_.clear();
  kept_.clear();
  return std::move(session_);
}

void Channel::make_spare(Requests* spare) {
  if (!spare->empty()) return;
  Requests made(1);
  made.front().payload.resize(wire::kPacketBytesMax + 1);
  spare->splice(spare->end(), made);
}

Channel::Read Channel::read(Requests* spare, SteadyTime now) {
  std::string& buffer = spare->front().payload;
  size_t size = 0;
  Endpoint::Sender sender;
  int error = 0;
  switch (socket_.receive(buffer.data(), buffer.size(), &size, &sender, &error)) {
    case Endpoint::Io::kDone:
      break;
    case Endpoint::Io::kAgain:
      return Read::kNothing;
    case Endpoint::Io::kRefused:
      not_before_ = now + kPause;
      return Read::kNothing;
    case Endpoint::Io::kEnded:
      hung_up_ = true;
      return Read::kEnded;
    case Endpoint::Io::kLost:
      return Read::kEnded;
  }
  // Connected before it was born: the kernel says who it is, not the peer.
  if (session_->pid == 0) {
    session_->pid = sender.pid > 0 ? sender.pid : kUnseen;
    session_->shown_pid = sender.pid;
    if (session_->pid == kUnseen) session_->process = std::move(sender.handle);
  }
  const auto packet = wire::parse({buffer.data(), size}, nullptr);
  if (!packet) return Read::kMalformed;
  const bool is_part = static_cast<wire::Op>(packet->kind) == wire::Op::kPart;
  if (packet->released > 0 && (!greeted_ || is_part || !parts_.empty())) return Read::kMalformed;
  if (is_part) return keep_part(packet->payload);
  Requests request;
  try {
    request.emplace_back().payload = parts_ + std::string(packet->payload);
    parts_.clear();
  } catch (const std::bad_alloc&) {
    if (!parts_.empty()) return Read::kMalformed;
    request.splice(request.end(), *spare);
    request.front().payload.resize(size);
    request.front().payload.erase(0, sizeof(wire::Header));
  }
  request.front().op = static_cast<wire::Op>(packet->kind);
  request.front().number = packet->number;
  request.front().released = packet->released;
  requests_.splice(requests_.end(), request);
  return Read::kRequest;
}

// The next request has these bytes before its own.
Channel::Read Channel::keep_part(std::string_view part) try {
  if (!greeted_ || part.size() > wire::kPayloadBytesMax - parts_.size()) return Read::kMalformed;
  parts_.append(part);
  return Read::kNothing;
} catch (const std::bad_alloc&) {
  return Read::kMalformed;
}

bool Channel::answer(Requests::iterator request, Answer answer, SteadyTime now) {
  if (request->number == 0) {
    requests_.erase(request);
    return true;
  }
  request->answer = std::move(answer);
  if (!request->answer.status.ok()) request->answer.payload = text_of(request->answer.status);
  kept_.splice(kept_.end(), requests_, request);
  return kept_.size() > 1 || send_kept(now);
}

Endpoint::Io Channel::send(Request& request, int* error) {
  const Answer& answer = request.answer;
  if (answer.descriptor.open() && !answer.descriptor.intact()) fail(request, EBADF);
  if (answer.descriptor.open() && !may_send_descriptor()) {
    if (!answer.descriptor_is_spare) {
      *error = ETOOMANYREFS;
      return Endpoint::Io::kRefused;
    }
    request.answer.descriptor.close();
  }
  const bool has_descriptor = answer.descriptor.open();
  const wire::Header header{wire::kVersion, wire::status_of(answer.status), 0, request.number};
  const Endpoint::Io result = socket_.send({reinterpret_cast<const char*>(&header), sizeof header},
                                           answer.payload, answer.descriptor.fd(), error);
  if (has_descriptor && result == Endpoint::Io::kDone) ++descriptors_unread_;
  return result;
}

bool Channel::may_send_descriptor() {
  if (descriptors_unread_ < kDescriptorsUnreadMax) return true;
  if (!socket_.all_is_read()) return false;
  descriptors_unread_ = 0;
  return true;
}

// What the kernel refuses costs this request, and no other; or its descriptor, where that is spare.
void Channel::fail(Request& request, int error) {
  Answer& answer = request.answer;
  const bool descriptor_only = answer.descriptor.open() && answer.descriptor_is_spare;
  answer.descriptor.close();
  if (descriptor_only) return;
  if (answer.status.ok()) request.undo = session_->undo_of(request);
  answer.status = Status::system_error(error, "sendmsg");
  answer.payload = text_of(answer.status);
}

// Its answer is sent. A request that failed on the way goes on as one that gives back what it brought.
void Channel::let_go_of_front() {
  if (!kept_.front().undo) return kept_.pop_front();
  kept_.front().undo = false;
  requests_.splice(requests_.end(), kept_, kept_.begin());
}

bool Channel::send_kept(SteadyTime now) {
  while (!kept_.empty()) {
    Request& kept = kept_.front();
    int error = 0;
    switch (send(kept, &error)) {
      case Endpoint::Io::kDone:
        break;
      case Endpoint::Io::kAgain:
        return true;
      case Endpoint::Io::kEnded:
      case Endpoint::Io::kLost:
        return false;
      case Endpoint::Io::kRefused:
        not_before_ = now + kPause;
        if (++kept.refusals <= kRefusalsMax || !Session::may_fail(kept.op)) return true;
        fail(kept, error);
        kept.refusals = 0;
        return true;
    }
    let_go_of_front();
  }
  return true;
}

uint32_t Channel::wanted_events() const {
  if (!kept_.empty()) return EPOLLOUT;
  if (requests_.size() >= session_->scope.limits.requests) return 0;
  uint64_t bytes = 0;
  for (const Request& request : requests_) bytes += request.payload.size();
  return bytes < wire::kPayloadBytesMax ? uint32_t{EPOLLIN} : 0;
}

}  // namespace pgalloc
