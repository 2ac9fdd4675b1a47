#include "sharing/departed.h"

#include <unistd.h>

#include <algorithm>
#include <new>
#include <utility>

#include "sharing/plant.h"

namespace pgalloc {
namespace {

constexpr std::chrono::milliseconds kFirstPause{1};
constexpr std::chrono::seconds kLongestPause{5};

}  // namespace

void Departed::add(Place place, std::unique_ptr<Session> session,
                   std::optional<PeerProcess> process, SteadyTime now) noexcept {
  Entry& entry = place.front();
  entry.session = std::move(session);
  entry.process = std::move(process);
  entry.next_look = now;
  entry.pause = kFirstPause;
  if (entry.session->pid == ::getpid()) entry.session->end_attachments();
  if (!entry.process || entry.session->holds_nothing()) {
    end(place, place.begin(), now);
  } else {
    for (const Entry& other : seen_) {
      if (!other.process->is_same(*entry.process)) continue;
      entry.next_look = std::max(entry.next_look, other.rests_until);
    }
    seen_.splice(seen_.end(), place);
  }
}

void Departed::end(Place& from, Place::iterator entry, SteadyTime now) noexcept {
  offers_.sender_ended(entry->session->id, now);
  Place& next = entry->session->holds_nothing() ? finished_ : ending_;
  next.splice(next.end(), from, entry);
}

void Departed::Look::take(const std::atomic<bool>* stop) noexcept try {
  std::vector<FileIdentity> all;
  for (const Of& of : sessions) all.insert(all.end(), of.files.begin(), of.files.end());
  std::ranges::sort(all);
  all.erase(std::unique(all.begin(), all.end()), all.end());
  const std::vector<bool> seen = process->may_see_each(all, stop);
  for (Of& of : sessions) {
    of.sees = std::ranges::any_of(of.files, [&](const FileIdentity& file) {
      return seen[static_cast<size_t>(std::ranges::lower_bound(all, file) - all.begin())];
    });
  }
} catch (const std::bad_alloc&) {  // NOLINT: it is looked at again
}

std::optional<Departed::Look> Departed::next_look(SteadyTime now) {
  if (looking_) return std::nullopt;
  const auto due =
      std::ranges::find_if(seen_, [&](const Entry& entry) { return entry.next_look <= now; });
  if (due == seen_.end()) return std::nullopt;
  Look look{&*due->process, {}};
  // Those before it are looked at later, if they are not of its process.
  for (auto entry = due; entry != seen_.end() && look.sessions.size() < kSessionsAtOnce; ++entry) {
    if (entry == due || entry->process->is_same(*look.process)) {
      look.sessions.push_back({entry->session->id, entry->session->files()});
    }
  }
  looking_ = true;
  return look;
}

void Departed::looked(const Look& look, SteadyTime now, std::chrono::nanoseconds took) noexcept {
  looking_ = false;
  const SteadyTime rests_until = now + 9 * took;
  auto of = look.sessions.begin();  // in the order of the list
  auto entry = seen_.begin();
  for (size_t left = seen_.size(); left > 0; --left) {
    const auto at = entry++;
    if (at->process->is_same(*look.process)) {
      at->rests_until = rests_until;
      at->next_look = std::max(at->next_look, rests_until);
    }
    if (of == look.sessions.end() || of->session != at->session->id) continue;
    const bool sees = of++->sees;
    if (!sees && !strikes(Plant::kLost)) {
      end(seen_, at, now);
      continue;
    }
    if (!sees) at->pause = std::chrono::hours(1);
    at->next_look = std::max<SteadyTime>(now + at->pause, rests_until);
    at->pause = std::min<std::chrono::nanoseconds>(at->pause * 5 / 4, kLongestPause);
    seen_.splice(seen_.end(), seen_, at);
  }
}

std::optional<SteadyTime> Departed::next_time() const {
  std::optional<SteadyTime> first;
  if (looking_) return first;
  for (const Entry& entry : seen_)
    first = std::min(first.value_or(entry.next_look), entry.next_look);
  return first;
}

void Departed::end_some(size_t ranges_max) {
  if (ending_.empty() || !ending_.front().session->end_some(ranges_max)) return;
  finished_.splice(finished_.end(), ending_, ending_.begin());
}

Departed::Place Departed::take_finished() noexcept { return std::exchange(finished_, {}); }

}  // namespace pgalloc
