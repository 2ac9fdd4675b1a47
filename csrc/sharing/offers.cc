#include "sharing/offers.h"



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

Result<wire::Secret> Offers::add(Offer offer) {
  if (by_secret_.size() >= kMax) {
    return Status::error(ErrorCode::kSharing,
                         std::to_string(kMax) + " offers wait to be claimed already");
  }
  wire::Secret secret{};
  PGALLOC_RETURN_IF_ERROR(wire::make_secret(&secret));
  const Key key{offer.since, secret};
  const uint64_t file = offer.file->id();
  const uint64_t sender = offer.sender;
  // What runs out of memory half-way is taken back.
  auto& of_file = by_file_[file];
  of_file.insert(key);
  try {
    by_sender_[sender].insert(secret);
    by_secret_.emplace(secret, Entry{std::move(offer), std::nullopt});
  } catch (...) {
    of_file.erase(key);
    if (const auto mine = by_sender_.find(sender); mine != by_sender_.end()) {
      mine->second.erase(secret);
    }
    throw;
  }
  return secret;
}

Offer Offers::take(Entries::iterator entry) {
  const wire::Secret secret = entry->first;
  Offer offer = std::move(entry->second.offer);
  const auto of_file = by_file_.find(offer.file->id());
  of_file->second.erase({offer.since, secret});
  if (of_file->second.empty()) by_file_.erase(of_file);
  if (entry->second.deadline) {
    by_deadline_.erase({*entry->second.deadline, secret});
  } else if (const auto mine = by_sender_.find(offer.sender); mine != by_sender_.end()) {
    mine->second.erase(secret);
    if (mine->second.empty()) by_sender_.erase(mine);
  }
  by_secret_.erase(entry);
  return offer;
}

std::optional<uint64_t> Offers::file_of(const wire::Secret& secret) const {
  const auto entry = by_secret_.find(secret);
  if (entry == by_secret_.end()) return std::nullopt;
  return entry->second.offer.file->id();
}

Result<Offer> Offers::claim(const wire::Secret& secret) {
  const auto entry = by_secret_.find(secret);
  if (entry != by_secret_.end()) return take(entry);
  return Status::error(
      ErrorCode::kSharing,
      "these pages were claimed already, or dropped: what was sent to another process can be "
      "received once");
}

std::vector<Offer> Offers::take_older(uint64_t file, SteadyTime latest) {
  std::vector<Offer> taken;
  for (auto of_file = by_file_.find(file);
       of_file != by_file_.end() && of_file->second.begin()->since <= latest;
       of_file = by_file_.find(file)) {
    const wire::Secret secret = of_file->second.begin()->secret;
    taken.push_back(take(by_secret_.find(secret)));
  }
  return taken;
}

std::vector<Offer> Offers::take_expired(SteadyTime now) {
  std::vector<Offer> taken;
  while (!by_deadline_.empty() && by_deadline_.begin()->since <= now) {
    const wire::Secret secret = by_deadline_.begin()->secret;
    taken.push_back(take(by_secret_.find(secret)));
  }
  return taken;
}

void Offers::sender_ended(uint64_t sender, SteadyTime now) {
  const auto mine = by_sender_.find(sender);
  if (mine == by_sender_.end()) return;
  for (const wire::Secret& secret : mine->second) {
    Entry& entry = by_secret_.find(secret)->second;
    if (entry.deadline) continue;  // memory ran out before
    by_deadline_.insert({now + kAfterSenderMax, secret});
    entry.deadline = now + kAfterSenderMax;
  }
  by_sender_.erase(mine);
}

std::optional<SteadyTime> Offers::next_deadline() const {
  if (by_deadline_.empty()) return std::nullopt;
  return by_deadline_.begin()->since;
}

std::vector<Offer> Offers::of_file(uint64_t file) const {
  std::vector<Offer> offers;
  if (const auto keys = by_file_.find(file); keys != by_file_.end()) {
    for (const Key& key : keys->second) offers.push_back(by_secret_.find(key.secret)->second.offer);
  }
  return offers;
}

std::vector<Offer> Offers::take_all() {
  std::vector<Offer> taken;
  while (!by_secret_.empty()) taken.push_back(take(by_secret_.begin()));
  return taken;
}

void drop(const Offer& offer) { (void)offer.file->references().drop_lease(offer.range); }

}  // namespace pgalloc
