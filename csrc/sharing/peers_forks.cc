// Forked children of peers, and this process's own. The rest is in peers.cc.

#include "sharing/peers.h"

#include <errno.h>

#include <chrono>
#include <new>
#include <utility>

#include "os/syscalls.h"

namespace pgalloc {

using os::sys;

namespace {

constexpr size_t kCopiedAtOnce = 512;  // ranges: about 0.3 ms

Answer refusal(Status status) { return {.status = std::move(status)}; }

}  // namespace

Status Peers::add_child(Endpoint socket, std::unique_ptr<Session> session) {
  if (!socket.intact()) return Status::system_error(EBADF, "fstat");
  const uint64_t number = next_number();
  add(number, std::make_unique<Connected>(number, std::move(socket), std::move(session),
                                          /*greeted=*/true, std::chrono::steady_clock::now()));
  wake();
  return {};
}

// One child of each peer at a time. Its leases are copied in steps; what the peer lets go of meanwhile the
// child will not have, either, or not need.
std::optional<Answer> Peers::fork(Connected& connected, Request& request, SteadyTime now) {
  if (request.progress == 0) {
    if (connected.unborn != nullptr) {
      request.waits = true;
      return std::nullopt;
    }
    Status status = begin_fork(connected, now);
    if (!status.ok()) return refusal(std::move(status));
    request.progress = 1;
  }
  Unborn& unborn = *connected.unborn;
  Status status;
  try {
    Result<bool> done = connected.channel.session().copy_some(unborn.child->channel.session(),
                                                              &unborn.copying, kCopiedAtOnce);
    if (done.ok() && !*done) return std::nullopt;
    status = std::move(done).status();
    Answer answer;
    if (status.ok()) {
      const uint64_t number = unborn.number;
      add(number, std::move(unborn.child));
      answer.descriptor = std::move(unborn.theirs);
    }
    give_up_unborn(connected, now);
    answer.status = std::move(status);
    return answer;
  } catch (const std::bad_alloc&) {
    give_up_unborn(connected, now);
    throw;
  }
}

Status Peers::begin_fork(Connected& connected, SteadyTime now) {
  const Session& parent = connected.channel.session();
  const PeerUsage& usage = *parent.usage();
  // The program's own processes may have as many as there are.
  const bool is_stranger = parent.scope.file != nullptr;
  if (channels_.size() >= channels_max() || usage.children >= parent.scope.limits.children ||
      (is_stranger && usage.connections + usage.children >= channels_max() / 4)) {
    return Status::error(ErrorCode::kSharing, "there are too many peers");
  }
  int pair[2];
  if (sys().socketpair(pair) != 0) return Status::system_error(errno, "socketpair");
  Endpoint ours(pair[0]);
  os::Descriptor theirs(pair[1]);
  if (!ours.open() || !theirs.open()) return Status::system_error(errno, "fstat");
  if (!ours.name_senders()) return Status::system_error(errno, "setsockopt");
  const uint64_t number = next_number();
  auto session = std::make_unique<Session>(number, offers_, parent.scope, 0, parent.uid);
  Session::Copying copying = parent.begin_copy(*session);
  auto child = std::make_unique<Connected>(number, std::move(ours), std::move(session),
                                           /*greeted=*/true, now);
  child->counted = std::make_unique<CountedChild>(parent.usage());
  connected.unborn = std::make_unique<Unborn>(
      Unborn{number, std::move(child), std::move(theirs), std::move(copying)});
  return {};
}

void Peers::give_up_unborn(Connected& connected, SteadyTime now) noexcept {
  if (const auto unborn = std::move(connected.unborn)) give_up(std::move(unborn->child), now);
}

// A child that never was: what it has got is given back as that of others, a piece at a time.
void Peers::give_up(std::unique_ptr<Connected> child, SteadyTime now) noexcept {
  if (child == nullptr) return;
  departed_.add(std::move(child->when_gone), child->channel.take_session(), std::nullopt, now);
}

}  // namespace pgalloc
