#include "sharing/offers.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <tuple>

namespace pgalloc {

double seconds_since_epoch() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

Offer Offer::now(const std::shared_ptr<MemoryFile>& file, FileRange range, uint64_t sender,
                 pid_t pid, uid_t uid) {
  return {file,  range, sender, pid, uid, std::chrono::steady_clock::now(), seconds_since_epoch(),
          sender};
}

size_t Offers::Hash::operator()(const wire::Secret& secret) const {
  size_t hash = 0;
  std::memcpy(&hash, secret.data(), sizeof hash);  // it is random
  return hash;
}

const Offers::Waiting* Offers::waiting(uint64_t file, uint64_t process) const {
  const auto of_file = by_file_.find(file);
  if (of_file == by_file_.end()) return nullptr;
  const auto found = of_file->second.processes.find(process);
  return found == of_file->second.processes.end() ? nullptr : &found->second;
}

uint64_t Offers::process_of(pid_t pid, uid_t uid) const {
  const auto found = process_of_.find({pid, uid});
  return found == process_of_.end() ? 0 : found->second;
}

uint64_t Offers::bytes_of_peer(uint64_t file, uint64_t process) const {
  const Waiting* const its = waiting(file, process);
  return its == nullptr ? 0 : its->bytes;
}

uint64_t Offers::bytes_of_all_peers(uint64_t file) const {
  const auto of_file = by_file_.find(file);
  return of_file == by_file_.end() ? 0 : of_file->second.bytes_of_peers;
}

bool Offers::any_claimable() const {
  return std::ranges::any_of(by_file_, [this](const auto& entry) {
    return !by_secret_.find(entry.second.keys.begin()->secret)->second.front().file->closed();
  });
}

namespace {

// Nothing, or what is wrong with so many bytes more.
Status check_bytes(uint64_t more, uint64_t waiting, uint64_t max, const char* whose) {
  if (more <= max && waiting <= max - more) return {};
  return Status::error(
      ErrorCode::kSharing,
      "cannot send " + std::to_string(more) + " bytes: " + std::to_string(waiting) +
          " bytes that " + whose + " sent wait to be claimed, and " + std::to_string(max) +
          " may at most. Wait until the receivers have them, or send less at once");
}

}  // namespace

Status Offers::check_room(const Offer& offer, std::optional<uint64_t> bytes_max) const {
  const auto count_of = [this](uint64_t one) {
    const auto found = of_process_.find(one);
    return found == of_process_.end() ? size_t{0} : found->second;
  };
  const size_t own = count_of(0);
  const bool is_own = offer.sender == 0;
  const bool full = is_own
                        ? own >= kMax
                        : by_secret_.size() - own >= kMax || count_of(offer.process) >= kOfPeerMax;
  if (full) {
    return Status::error(ErrorCode::kSharing, "too many offers wait to be claimed already");
  }
  const uint64_t file = offer.file->id();
  const Waiting* const its = waiting(file, offer.process);
  const bool counted = its != nullptr && its->ranges.contains({offer.range.start, offer.range.end});
  if (is_own || counted) return {};
  const uint64_t more = offer.range.length();
  const uint64_t max = bytes_max.value_or(of_peer_max(*offer.file));
  PGALLOC_RETURN_IF_ERROR(check_bytes(more, its == nullptr ? 0 : its->bytes, max, "this process"));
  // Where one peer was allowed more, all together are, too.
  return check_bytes(more, bytes_of_all_peers(file), std::max(max, of_all_peers_max(*offer.file)),
                     "all processes but the owner");
}

Result<wire::Secret> Offers::add(const Offer& offer, std::optional<uint64_t> bytes_max) {
  PGALLOC_RETURN_IF_ERROR(check_room(offer, bytes_max));
  wire::Secret secret{};
  PGALLOC_RETURN_IF_ERROR(wire::make_secret(&secret));
  try {
    File& file = by_file_[offer.file->id()];
    file.keys.insert({offer.since, secret});
    Sender& sender = by_sender_[offer.sender];
    if (sender.place.empty()) sender.place.emplace_back();
    sender.secrets.insert(secret);
    Waiting* const its = offer.sender == 0 ? nullptr : &file.processes[offer.process];
    size_t* const times =
        its == nullptr ? nullptr : &its->ranges[{offer.range.start, offer.range.end}];
    size_t& of_process = of_process_[offer.process];
    if (offer.seen > 0) process_of_.try_emplace({offer.seen, offer.uid}, offer.process);
    by_secret_.emplace(secret, Places{offer});
    ++of_process;
    if (times != nullptr && (*times)++ == 0) {
      its->bytes += offer.range.length();
      file.bytes_of_peers += offer.range.length();
    }
  } catch (...) {
    forget(secret, offer, /*counted=*/false);
    throw;
  }
  return secret;
}

// From all lists but by_secret_; in some it may be missing unless it was counted.
void Offers::forget(const wire::Secret& secret, const Offer& offer, bool counted) noexcept {
  if (const auto of_file = by_file_.find(offer.file->id()); of_file != by_file_.end()) {
    File& file = of_file->second;
    if (const auto its = file.processes.find(offer.process); its != file.processes.end()) {
      Waiting& waiting = its->second;
      const auto range = waiting.ranges.find({offer.range.start, offer.range.end});
      if (counted && --range->second == 0) {
        waiting.bytes -= offer.range.length();
        file.bytes_of_peers -= offer.range.length();
      }
      if (range != waiting.ranges.end() && range->second == 0) waiting.ranges.erase(range);
      if (waiting.ranges.empty()) file.processes.erase(its);
    }
    file.keys.erase({offer.since, secret});
    if (file.keys.empty()) by_file_.erase(of_file);
  }
  if (const auto its = of_process_.find(offer.process); its != of_process_.end()) {
    if (counted) --its->second;
    if (its->second == 0) {
      const auto known = process_of_.find({offer.seen, offer.uid});
      if (known != process_of_.end() && known->second == offer.process) process_of_.erase(known);
      of_process_.erase(its);
    }
  }
  if (const auto of_sender = by_sender_.find(offer.sender); of_sender != by_sender_.end()) {
    Sender& its = of_sender->second;
    its.secrets.erase(secret);
    if (!its.secrets.empty()) return;
    if (its.ended) ended_.erase(*its.ended);
    by_sender_.erase(of_sender);
  }
}

Offers::Places Offers::take(Entries::iterator entry) noexcept {
  Places place = std::move(entry->second);
  forget(entry->first, place.front(), /*counted=*/true);
  by_secret_.erase(entry);
  return place;
}

std::optional<uint64_t> Offers::file_of(const wire::Secret& secret) const {
  const auto entry = by_secret_.find(secret);
  if (entry == by_secret_.end()) return std::nullopt;
  return entry->second.front().file->id();
}

Result<Offer> Offers::claim(const wire::Secret& secret) {
  Result<Places> place = claim_place(secret);
  if (!place.ok()) return std::move(place).status();
  return std::move(place->front());
}

Result<Offers::Places> Offers::claim_place(const wire::Secret& secret) {
  const auto entry = by_secret_.find(secret);
  if (entry != by_secret_.end()) return take(entry);
  return Status::error(
      ErrorCode::kSharing,
      "these pages were claimed already, or dropped: what was sent to another process can be "
      "received once");
}

void Offers::withdraw(const wire::Secret& secret) noexcept {
  const auto entry = by_secret_.find(secret);
  if (entry != by_secret_.end()) drop_later(take(entry));
}

Offers::Places Offers::take_older(uint64_t file, SteadyTime latest, size_t count_max) noexcept {
  Places taken;
  while (taken.size() < count_max) {
    const auto of_file = by_file_.find(file);
    if (of_file == by_file_.end() || of_file->second.keys.begin()->since > latest) break;
    taken.splice(taken.end(), take(by_secret_.find(of_file->second.keys.begin()->secret)));
  }
  return taken;
}

Offers::Places Offers::take_expired(SteadyTime now, size_t count_max) noexcept {
  Places taken;
  while (taken.size() < count_max && !ended_.empty() &&
         ended_.front().since + after_sender_max <= now) {
    const Sender& sender = by_sender_.find(ended_.front().sender)->second;
    taken.splice(taken.end(), take(by_secret_.find(*sender.secrets.begin())));
  }
  return taken;
}

void Offers::drop_some(size_t segments_max) noexcept {
  while (!dropping_.empty() && segments_max > 0) {
    if (!drop_front(dropping_.front(), &segments_max)) return;
    dropped_.splice(dropped_.end(), dropping_, dropping_.begin());
  }
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

std::vector<Offer> Offers::of_file(uint64_t file, size_t count_max,
                                   std::optional<Key>* last) const {
  std::vector<Offer> offers;
  const auto its = by_file_.find(file);
  if (its == by_file_.end()) return offers;
  const std::set<Key>& keys = its->second.keys;
  for (auto key = *last ? keys.upper_bound(**last) : keys.begin();
       key != keys.end() && offers.size() < count_max; ++key) {
    offers.push_back(by_secret_.find(key->secret)->second.front());
    *last = *key;
  }
  return offers;
}

// What is counted is what the offers of the file say.
std::optional<std::string> Offers::verify_bytes(const File& file) const {
  std::map<std::tuple<uint64_t, uint64_t, uint64_t>, size_t> times;
  for (const Key& key : file.keys) {
    const auto offer = by_secret_.find(key.secret);
    if (offer == by_secret_.end()) return "an offer of a file is lost";
    const auto& [start, end] = offer->second.front().range;
    const uint64_t process = offer->second.front().process;
    if (process != 0) ++times[{process, start, end}];
  }
  size_t ranges = 0;
  uint64_t bytes_of_all = 0;
  for (const auto& [process, waiting] : file.processes) {
    uint64_t bytes = 0;
    for (const auto& [range, count] : waiting.ranges) {
      const auto counted = times.find({process, range.first, range.second});
      if (counted == times.end() || counted->second != count) return "a range is miscounted";
      bytes += range.second - range.first;
    }
    if (waiting.ranges.empty()) return "a process without ranges is remembered";
    if (bytes != waiting.bytes) return "the bytes of a process's offers are miscounted";
    ranges += waiting.ranges.size();
    bytes_of_all += bytes;
  }
  if (ranges != times.size()) return "a range is not counted";
  if (bytes_of_all != file.bytes_of_peers) return "the bytes of all peers' offers are miscounted";
  return std::nullopt;
}

std::optional<std::string> Offers::verify() const {
  size_t in_files = 0;
  for (const auto& [number, file] : by_file_) {
    if (file.keys.empty()) return "a file without offers is remembered";
    in_files += file.keys.size();
    if (auto broken = verify_bytes(file)) return broken;
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
  std::unordered_map<uint64_t, size_t> of_process;
  for (const auto& [secret, place] : by_secret_) {
    const Offer& offer = place.front();
    ++of_process[offer.process];
    const auto of_file = by_file_.find(offer.file->id());
    const auto sender = by_sender_.find(offer.sender);
    if (of_file == by_file_.end() || !of_file->second.keys.contains({offer.since, secret})) {
      return "an offer is not among those of its file";
    }
    if (sender == by_sender_.end() || !sender->second.secrets.contains(secret)) {
      return "an offer is not among those of its sender";
    }
  }
  if (in_files != size() || of_senders != size()) return "an offer is listed that is not there";
  if (of_process != of_process_) return "the offers of a process are miscounted";
  for (const auto& [id, process] : process_of_) {
    if (!of_process_.contains(process)) return "a process without offers is remembered";
  }
  if (ended != ended_.size()) return "a sender that ended is lost";
  const bool ordered = std::is_sorted(
      ended_.begin(), ended_.end(),
      [](const Ended& left, const Ended& right) { return left.since < right.since; });
  if (!ordered) return "senders do not stand in the order in which they ended";
  return std::nullopt;
}

bool drop_front(Offer& offer, size_t* left) noexcept {
  while (*left > 0 && !offer.range.empty()) {
    Offer piece = offer;
    piece.range = offer.file->references().front(offer.range, left);
    drop(piece);
    offer.range.start = piece.range.end;
  }
  return offer.range.empty();
}

void drop(const Offer& offer) noexcept try {
  (void)offer.file->references().drop_lease(offer.range);
} catch (const std::bad_alloc&) {  // NOLINT: nothing can be done
}

}  // namespace pgalloc
