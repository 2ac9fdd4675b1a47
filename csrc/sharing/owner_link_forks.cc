// What a link does for a fork of its process: see Forks.

#include "sharing/owner_link.h"

#include <unistd.h>

#include <algorithm>
#include <new>
#include <optional>
#include <utility>

#include "os/syscalls.h"

namespace pgalloc {

using os::sys;
using wire::Op;

std::vector<std::shared_ptr<OwnerLink>> OwnerLink::all() {
  std::vector<std::shared_ptr<OwnerLink>> links;
  MutexLock lock(listed_lock());
  size_t count = 0;
  visit_listed([&](OwnerLink&) { ++count; });
  links.reserve(count);  // before there is a link that could be destroyed here
  visit_listed([&](OwnerLink& link) {
    if (link.forked() || link.broken()) return;
    if (auto shared = link.weak_from_this().lock()) links.push_back(std::move(shared));
  });
  return links;
}

void OwnerLink::park_all() {
  all_parked_ = true;
  try {
    for (const auto& link : all()) link->stop_thread();
  } catch (const std::bad_alloc&) {  // NOLINT: they go on until there is nothing to do
  }
}

void OwnerLink::resume_all() {
  all_parked_ = false;
  try {
    for (const auto& link : all()) link->resume();
  } catch (const std::bad_alloc&) {  // NOLINT: the next call that needs a thread starts it
  }
}

void OwnerLink::leave_to_parent() {
  if (forked()) socket_.close();
}

bool OwnerLink::introduce() {
  const auto pid = static_cast<uint32_t>(::getpid());
  MutexLock lock(mu_);
  std::string hello;
  wire::append(hello, pid, wire::Secret{});
  outgoing_.add(Op::kHello, 0, hello);
  constexpr int kTries = 20;
  for (int i = 0; i < kTries; ++i) {
    // An owner that has dropped the connection, and lives, counts the child as one that never was.
    if (send_queued()) return !broken() || owner_ends(kOwnersEndAtFork_ms);
    (void)sys().poll(nullptr, 0, 1);  // the kernel was short of something
  }
  return false;
}

std::optional<OwnerLink::ChildSocket> OwnerLink::ask_for_child() {
  if (files_ == 0) return std::nullopt;
  const auto socket = std::make_shared<Endpoint>();
  Question question = ask(
      Op::kFork, {},
      {[socket](Reply& reply) { *socket = Endpoint(std::exchange(reply.descriptor, -1)); }, {}});
  if (question == nullptr) return std::nullopt;
  return ChildSocket{std::move(question), socket};
}

Endpoint OwnerLink::await_child(const ChildSocket& asked, Time deadline) {
  // It may be there already, however late it is.
  const Time soon = std::chrono::steady_clock::now() + std::chrono::milliseconds(10);
  const Status status = await(asked.question, {std::max(deadline, soon), [] { return true; }});
  return status.ok() ? std::move(*asked.socket) : Endpoint();
}

bool OwnerLink::hold_answers(Time deadline) {
  MutexLock lock(mu_);
  holding_ = true;
  while (settling_ > 0) {
    if (!changed_.wait_until(mu_, deadline) && settling_ > 0) {
      holding_ = false;
      return false;
    }
  }
  return true;
}

void OwnerLink::let_answers_in() {
  MutexLock lock(mu_);
  holding_ = false;
  for (Held& held : std::exchange(held_, {})) {
    held.arrived.reply.payload = held.payload;
    dispatch(held.arrived);
  }
}

}  // namespace pgalloc
