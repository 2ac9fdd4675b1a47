#include "sharing/departed.h"

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
  if (!entry.process || entry.session->holds_nothing()) {
    end(place, place.begin(), now);
  } else {
    seen_.splice(seen_.end(), place);
  }
}

void Departed::end(Place& from, Place::iterator entry, SteadyTime now) noexcept {
  offers_.sender_ended(entry->session->id, now);
  Place& next = entry->session->holds_nothing() ? finished_ : ending_;
  next.splice(next.end(), from, entry);
}

bool Departed::Look::take() const try {
  return process->may_see(files);
} catch (const std::bad_alloc&) {
  return true;  // it is looked at again
}

std::optional<Departed::Look> Departed::next_look(SteadyTime now) {
  for (const Entry& entry : seen_) {
    if (entry.next_look <= now) return Look{&*entry.process, entry.session->files()};
  }
  return std::nullopt;
}

void Departed::looked(const Look& look, bool sees, SteadyTime now) noexcept {
  const auto entry = std::find_if(seen_.begin(), seen_.end(), [&](const Entry& each) {
    return &*each.process == look.process;
  });
  if (entry == seen_.end()) return;
  if (!sees && !strikes(Plant::kLost)) return end(seen_, entry, now);
  if (!sees) entry->pause = std::chrono::hours(1);
  entry->next_look = now + entry->pause;
  entry->pause = std::min<std::chrono::nanoseconds>(entry->pause * 5 / 4, kLongestPause);
  seen_.splice(seen_.end(), seen_, entry);
}

std::optional<SteadyTime> Departed::next_time() const {
  std::optional<SteadyTime> first;
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
