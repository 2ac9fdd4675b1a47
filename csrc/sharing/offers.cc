#include "sharing/offers.h"

#include <algorithm>
#include <cstring>
#include <new>

namespace pgalloc {

double seconds_since_epoch() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

Offer Offer::now(const std::shared_ptr<MemoryFile>& file, FileRange range, uint64_t sender,
                 pid_t pid, uid_t uid) {
  return {file, range, sender, pid, uid, std::chrono::steady_clock::now(), seconds_since_epoch()};
}

size_t Offers::Hash::operator()(const wire::Secret& secret) const {
  size_t hash = 0;
  std::memcpy(&hash, secret.data(), sizeof hash);  // it is random
  return hash;
}

Status Offers::check_room(uint64_t sender) const {
  const auto count_of = [this](uint64_t one) {
    const auto found = by_sender_.find(one);
    return found == by_sender_.end() ? size_t{0} : found->second.secrets.size();
  };
  const size_t own = count_of(0);
  const bool full =
      sender == 0 ? own >= kMax : by_secret_.size() - own >= kMax || count_of(sender) >= kOfPeerMax;
  if (!full) return {};
  return Status::error(ErrorCode::kSharing, "too many offers wait to be claimed already");
}

Result<wire::Secret> Offers::add(Offer offer) {
  const uint64_t file = offer.file->id();
  const uint64_t sender_id = offer.sender;
  PGALLOC_RETURN_IF_ERROR(check_room(sender_id));
  wire::Secret secret{};
  PGALLOC_RETURN_IF_ERROR(wire::make_secret(&secret));
  const Key key{offer.since, secret};
  try {
    by_file_[file].insert(key);
    Sender& sender = by_sender_[sender_id];
    if (sender.place.empty()) sender.place.emplace_back();
    sender.secrets.insert(secret);
    by_secret_.emplace(secret, std::move(offer));
  } catch (...) {
    forget(key, file, sender_id);
    throw;
  }
  return secret;
}

Result<wire::Secret> Offers::add_or_drop(const Offer& offer) try {
  Result<wire::Secret> secret = add(offer);
  if (!secret.ok()) drop(offer);
  return secret;
} catch (const std::bad_alloc&) {
  drop(offer);
  throw;
}

void Offers::forget(const Key& key, uint64_t file, uint64_t sender) noexcept {
  if (const auto of_file = by_file_.find(file); of_file != by_file_.end()) {
    of_file->second.erase(key);
    if (of_file->second.empty()) by_file_.erase(of_file);
  }
  if (const auto of_sender = by_sender_.find(sender); of_sender != by_sender_.end()) {
    Sender& its = of_sender->second;
    its.secrets.erase(key.secret);
    if (!its.secrets.empty()) return;
    if (its.ended) ended_.erase(*its.ended);
    by_sender_.erase(of_sender);
  }
}

Offer Offers::take(Entries::iterator entry) noexcept {
  Offer offer = std::move(entry->second);
  forget({offer.since, entry->first}, offer.file->id(), offer.sender);
  by_secret_.erase(entry);
  return offer;
}

std::optional<uint64_t> Offers::file_of(const wire::Secret& secret) const {
  const auto entry = by_secret_.find(secret);
  if (entry == by_secret_.end()) return std::nullopt;
  return entry->second.file->id();
}

Result<Offer> Offers::claim(const wire::Secret& secret) {
  const auto entry = by_secret_.find(secret);
  if (entry != by_secret_.end()) return take(entry);
  return Status::error(
      ErrorCode::kSharing,
      "these pages were claimed already, or dropped: what was sent to another process can be "
      "received once");
}

std::vector<Offer> Offers::take_older(uint64_t file, SteadyTime latest, size_t count_max) {
  std::vector<Offer> taken;
  taken.reserve(count_max);  // what is taken must not get lost
  while (taken.size() < count_max) {
    const auto of_file = by_file_.find(file);
    if (of_file == by_file_.end() || of_file->second.begin()->since > latest) break;
    taken.push_back(take(by_secret_.find(of_file->second.begin()->secret)));
  }
  return taken;
}

std::vector<Offer> Offers::take_expired(SteadyTime now, size_t count_max) {
  std::vector<Offer> taken;
  if (ended_.empty() || ended_.front().since + after_sender_max > now) return taken;
  taken.reserve(count_max);
  while (taken.size() < count_max && !ended_.empty() &&
         ended_.front().since + after_sender_max <= now) {
    const Sender& sender = by_sender_.find(ended_.front().sender)->second;
    taken.push_back(take(by_secret_.find(*sender.secrets.begin())));
  }
  return taken;
}

void Offers::sender_ended(uint64_t sender, SteadyTime now) noexcept {
  const auto found = by_sender_.find(sender);
  if (found == by_sender_.end() || found->second.ended) return;
  Sender& its = found->second;
  its.place.front() = {sender, now};
  its.ended = its.place.begin();
  ended_.splice(ended_.end(), its.place);
}

std::optional<SteadyTime> Offers::next_deadline() const {
  if (ended_.empty()) return std::nullopt;
  return ended_.front().since + after_sender_max;
}

std::vector<Offer> Offers::of_file(uint64_t file) const {
  std::vector<Offer> offers;
  if (const auto keys = by_file_.find(file); keys != by_file_.end()) {
    for (const Key& key : keys->second) offers.push_back(by_secret_.find(key.secret)->second);
  }
  return offers;
}

std::optional<std::string> Offers::verify() const {
  size_t in_files = 0;
  for (const auto& [file, keys] : by_file_) {
    if (keys.empty()) return "a file without offers is remembered";
    in_files += keys.size();
  }
  size_t of_senders = 0;
  size_t ended = 0;
  for (const auto& [number, sender] : by_sender_) {
    if (sender.secrets.empty()) return "a sender without offers is remembered";
    of_senders += sender.secrets.size();
    if (sender.ended) ++ended;
    if (sender.ended && (*sender.ended)->sender != number) return "a sender has another's place";
    if (sender.ended.has_value() != sender.place.empty()) return "a sender's place is lost";
  }
  for (const auto& [secret, offer] : by_secret_) {
    const auto of_file = by_file_.find(offer.file->id());
    const auto sender = by_sender_.find(offer.sender);
    if (of_file == by_file_.end() || !of_file->second.contains({offer.since, secret})) {
      return "an offer is not among those of its file";
    }
    if (sender == by_sender_.end() || !sender->second.secrets.contains(secret)) {
      return "an offer is not among those of its sender";
    }
  }
  if (in_files != size() || of_senders != size()) return "an offer is listed that is not there";
  if (ended != ended_.size()) return "a sender that ended is lost";
  const bool ordered = std::is_sorted(
      ended_.begin(), ended_.end(),
      [](const Ended& left, const Ended& right) { return left.since < right.since; });
  if (!ordered) return "senders do not stand in the order in which they ended";
  return std::nullopt;
}

void drop(const Offer& offer) noexcept try {
  (void)offer.file->references().drop_lease(offer.range);
} catch (const std::bad_alloc&) {  // NOLINT: nothing can be done
}

}  // namespace pgalloc
