#include "cache/remote_store.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>
#include <string>
#include <utility>

#include "base/units.h"
#include "sharing/wire.h"

namespace pgalloc::cache {
namespace {

struct Reply {
  std::string payload;
  os::Descriptor file;
};

std::string payload_of(wire::CacheCall call, uint64_t cache) {
  std::string payload;
  wire::append(payload, static_cast<uint8_t>(call), cache);
  return payload;
}

Status not_the_protocol() {
  return Status::error(ErrorCode::kSharing, "the owner of the Cache does not follow the protocol");
}

// An answer that brings a file.
Result<Reply> ask(OwnerLink& link, wire::CacheCall call, uint64_t cache,
                  const OwnerLink::Patience& patience) {
  const auto reply = std::make_shared<Reply>();
  OwnerLink::Exchange exchange{[reply](OwnerLink::Reply& arrived) {
                                 reply->payload = arrived.payload;
                                 reply->file =
                                     os::Descriptor(std::exchange(arrived.descriptor, -1));
                               },
                               {}};
  PGALLOC_RETURN_IF_ERROR(
      link.request(wire::Op::kCache, payload_of(call, cache), std::move(exchange), patience));
  if (!reply->file.open()) return not_the_protocol();
  return std::move(*reply);
}

void detach(OwnerLink& link, uint64_t cache, uint64_t reader) try {
  std::string payload = payload_of(wire::CacheCall::kDetach, cache);
  wire::append(payload, reader);
  link.post(wire::Op::kCache, payload, {});
} catch (const std::bad_alloc&) {  // NOLINT: the owner finds out when the connection ends
}

void append_text(std::string& out, std::string_view text) {
  wire::append(out, static_cast<uint32_t>(text.size()), text);
}

uint64_t now_ns() {
  return static_cast<uint64_t>(
      std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count());
}

}  // namespace

Result<std::shared_ptr<RemoteStore>> RemoteStore::attach(std::shared_ptr<PeerFile> file,
                                                         uint64_t cache, const Patience& patience) {
  OwnerLink& link = file->link();
  Result<Reply> index_reply = ask(link, wire::CacheCall::kIndex, cache, patience);
  if (!index_reply.ok()) return std::move(index_reply).status();
  Facts facts;
  uint64_t bytes_max = 0;
  uint8_t policy = 0;
  if (!wire::Reader(index_reply->payload).read_all(bytes_max, policy, facts.id) ||
      policy >= kDiscardPolicyNames.size()) {
    return not_the_protocol();
  }
  if (bytes_max != UINT64_MAX) facts.bytes_max = bytes_max;
  facts.policy = static_cast<DiscardPolicy>(policy);
  Result<IndexFile> index = IndexFile::map(std::move(index_reply->file));
  if (!index.ok()) return std::move(index).status();
  Result<Reply> holds_reply = ask(link, wire::CacheCall::kAttach, cache, patience);
  if (!holds_reply.ok()) return std::move(holds_reply).status();
  uint64_t reader = 0;
  if (!wire::Reader(holds_reply->payload).read_all(reader)) return not_the_protocol();
  Result<HoldsFile> holds =
      HoldsFile::map(std::move(holds_reply->file), index->index().entry_count);
  if (!holds.ok()) {
    detach(link, cache, reader);
    return std::move(holds).status();
  }
  return std::shared_ptr<RemoteStore>(
      new RemoteStore(std::move(file), std::move(*index), std::move(*holds), reader, facts));
}

RemoteStore::RemoteStore(std::shared_ptr<PeerFile> file, IndexFile index, HoldsFile holds,
                         uint64_t reader, const Facts& facts)
    : file_(std::move(file)),
      reader_number_(reader),
      facts_(facts),
      index_(std::move(index)),
      holds_(std::move(holds)),
      reader_(index_.index(), holds_.holds()) {
  index_.close_descriptor();
  holds_.close_descriptor();
}

// A hold keeps it: so nothing is held.
RemoteStore::~RemoteStore() { close(); }

void RemoteStore::close() {
  if (closed_.exchange(true) || generation_ != process_generation()) return;
  if (--held_ == 0) detach(file_->link(), facts_.id, reader_number_);
}

Status RemoteStore::check_usable() const {
  if (generation_ != process_generation()) {
    return Status::error(ErrorCode::kForked,
                         "the Cache is the parent process's: connect() again in the child");
  }
  if (closed_.load(std::memory_order_acquire)) {
    return Status::error(ErrorCode::kClosed, "the Cache is closed");
  }
  if (index_.closed()) return Status::error(ErrorCode::kClosed, "the owner has closed the Cache");
  return {};
}

std::optional<Fields> RemoteStore::hold(std::string_view key) {
  const auto hash = static_cast<uint32_t>(hash_of(key, index_.secret()));
  std::optional<Fields> found = reader_.hold(hash, [&](const Fields& fields) {
    return index_.keys().is(fields.key_place, fields.key_length, key);
  });
  if (found && found->expires_ns != 0 && found->expires_ns <= now_ns()) {
    reader_.let_go(*found);
    return std::nullopt;
  }
  return found;
}

// Nothing if no owner says this: then it is let go of.
std::optional<HeldValue> RemoteStore::held(const Fields& fields) {
  if (fields.place > kMaxOffset || fields.length > kMaxOffset - fields.place) {
    reader_.let_go(fields);
    return std::nullopt;
  }
  ++held_;
  file_->begin_value();
  const uint64_t end = fields.place + std::max<uint64_t>(fields.length, 1);
  return HeldValue{.hold = fields.holder,
                   .pages = {align_down(fields.place, page_size()), align_up(end, page_size())},
                   .place = fields.place,
                   .length = fields.length};
}

std::optional<HeldValue> RemoteStore::get(std::string_view key, bool counted) {
  const std::optional<Fields> found = hold(key);
  if (counted) found ? holds_.count_hit() : holds_.count_miss();
  return found ? held(*found) : std::nullopt;
}

bool RemoteStore::contains(std::string_view key) {
  const std::optional<Fields> found = hold(key);
  if (found) reader_.let_go(*found);
  return found.has_value();
}

void RemoteStore::let_go(uint64_t hold) {
  holds_.holds().remove(static_cast<uint32_t>(hold));
  if (--held_ == 0) detach(file_->link(), facts_.id, reader_number_);
  file_->end_value();
}

Store::Keys RemoteStore::keys() const {
  Store::Keys keys;
  const uint64_t now = now_ns();
  const uint64_t used = index_.entries_used();
  for (uint64_t number = 0; number < used; ++number) {
    uint64_t version = 0;
    const std::optional<Fields> fields = reader_.look_at(number, &version);
    if (!fields || (fields->expires_ns != 0 && fields->expires_ns <= now)) continue;
    std::optional<std::string> key = index_.keys().copy(fields->key_place, fields->key_length);
    if (!key || !reader_.is_still(number, version)) continue;
    keys.bytes += *key;
    keys.ends.push_back(keys.bytes.size());
  }
  return keys;
}

// --- By the owner --------------------------------------------------------------------------------

Result<std::string> RemoteStore::call(wire::CacheCall call, const std::string& arguments,
                                      const Patience& patience) const {
  PGALLOC_RETURN_IF_ERROR(check_usable());
  std::string payload = payload_of(call, facts_.id);
  wire::append(payload, reader_number_);
  payload += arguments;
  const auto answer = std::make_shared<std::string>();
  PGALLOC_RETURN_IF_ERROR(file_->link().request(
      wire::Op::kCache, payload,
      {[answer](OwnerLink::Reply& reply) { *answer = reply.payload; }, {}}, patience));
  return std::move(*answer);
}

Result<RemoteStore::Outcome> RemoteStore::put(const Item& item, std::string_view data,
                                              const Patience& patience) {
  constexpr uint64_t kShort = 2048;  // fits a packet, with a usual key
  constexpr uint64_t kInMessageMax = uint64_t{1} << 19;
  std::string text;
  append_text(text, item.key);
  append_text(text, item.tag.value_or(std::string_view()));
  wire::append(text, uint64_t{data.size()});
  std::string lasts;
  wire::append(lasts, item.expires_ns);
  text = lasts + text;
  const auto bits = static_cast<uint8_t>((item.only_if_none ? 1 : 0) | (item.tag ? 2 : 0));
  const bool in_file = data.size() > kShort && !value_used_.exchange(true);
  if (in_file) return put_from_file(bits, text, data, patience);
  if (data.size() >
      kInMessageMax) {  // another thread is putting one: so this one gets a place of its own
    Result<std::shared_ptr<RemoteStore>> other = attach(file_, facts_.id, patience);
    if (!other.ok()) return std::move(other).status();
    (*other)->value_used_ = true;
    return (*other)->put_from_file(bits, text, data, patience);
  }
  std::string arguments;
  wire::append(arguments, bits, std::string_view(text), data);
  Result<std::string> answer = call(wire::CacheCall::kPut, arguments, patience);
  if (!answer.ok()) return std::move(answer).status();
  return outcome_of(*answer);
}

// REQUIRES: value_used_ is this call's. It stays so if the owner may still read the value when this ends.
Result<RemoteStore::Outcome> RemoteStore::put_from_file(uint8_t bits, const std::string& item,
                                                        std::string_view data,
                                                        const Patience& patience) {
  constexpr uint8_t kInFile = 4, kInParts = 8;
  const auto ended = [&](const Status& status) {
    const bool answered = status.ok() || (status.code() != ErrorCode::kInterrupted &&
                                          status.code() != ErrorCode::kTimedOut);
    if (answered) value_used_ = false;
  };
  const bool in_parts = data.size() > HoldsFile::kValueBytes;
  for (uint64_t at = 0; in_parts && at < data.size();) {
    const uint64_t part = std::min(data.size() - at, HoldsFile::kValueBytes);
    std::memcpy(holds_.value(), data.data() + at, part);
    std::string arguments;
    wire::append(arguments, uint64_t{data.size()}, at, part);
    const Result<std::string> answer = call(wire::CacheCall::kPutPart, arguments, patience);
    if (!answer.ok()) {
      ended(answer.status());
      return answer.status().clone();
    }
    at += part;
  }
  if (!in_parts) std::memcpy(holds_.value(), data.data(), data.size());
  std::string arguments;
  wire::append(arguments, static_cast<uint8_t>(bits | (in_parts ? kInParts : kInFile)),
               std::string_view(item));
  const Result<std::string> answer = call(wire::CacheCall::kPut, arguments, patience);
  ended(answer.ok() ? Status() : answer.status().clone());
  if (!answer.ok()) return answer.status().clone();
  return outcome_of(*answer);
}

Result<RemoteStore::Outcome> RemoteStore::outcome_of(std::string_view answer) {
  uint8_t what = 0;
  Outcome outcome;
  wire::Reader fields(answer);
  if (!fields.read(what)) return not_the_protocol();
  outcome.done = what == 1;
  if (what == 2 && !fields.read(outcome.counted)) return not_the_protocol();
  return outcome;
}

namespace {

// What the owner answers: one number.
template <class Number>
Result<Number> number_in(const Result<std::string>& answer) {
  if (!answer.ok()) return answer.status().clone();
  Number number{};
  if (!wire::Reader(*answer).read_all(number)) return not_the_protocol();
  return number;
}

Result<bool> yes_or_no(const Result<std::string>& answer) {
  const Result<uint8_t> number = number_in<uint8_t>(answer);
  if (!number.ok()) return number.status().clone();
  return *number == 1;
}

}  // namespace

Result<bool> RemoteStore::remove(std::string_view key, const Patience& patience) {
  std::string arguments;
  append_text(arguments, key);
  return yes_or_no(call(wire::CacheCall::kRemove, arguments, patience));
}

Result<uint64_t> RemoteStore::remove_tagged(std::string_view tag, const Patience& patience) {
  std::string arguments;
  append_text(arguments, tag);
  return number_in<uint64_t>(call(wire::CacheCall::kRemoveTagged, arguments, patience));
}

Status RemoteStore::clear(const Patience& patience) {
  return call(wire::CacheCall::kClear, {}, patience).status().clone();
}

Result<uint64_t> RemoteStore::evict(uint64_t bytes, const Patience& patience) {
  std::string arguments;
  wire::append(arguments, bytes);
  return number_in<uint64_t>(call(wire::CacheCall::kEvict, arguments, patience));
}

// The owner holds what it takes for this process; if the answer is not wanted any more, it is let go of.
Result<RemoteStore::Taken> RemoteStore::take(std::optional<std::string_view> key,
                                             const Patience& patience) {
  PGALLOC_RETURN_IF_ERROR(check_usable());
  std::string payload =
      payload_of(key ? wire::CacheCall::kTake : wire::CacheCall::kTakeNext, facts_.id);
  wire::append(payload, reader_number_);
  if (key) append_text(payload, *key);
  struct Arrived {
    bool good = false;
    std::optional<Fields> fields;
    std::string key;
  };
  const auto arrived = std::make_shared<Arrived>();
  const auto self = shared_from_this();
  OwnerLink::Exchange exchange{
      [self, arrived](OwnerLink::Reply& reply) {
        wire::Reader reader(reply.payload);
        uint8_t found = 0;
        Fields fields;
        arrived->good = reader.read(found) &&
                        (found == 0 || reader.read(fields.place, fields.length, fields.holder));
        if (!arrived->good || found == 0) return;
        arrived->key = reader.left();
        arrived->fields = fields;
      },
      [self, arrived] {
        if (arrived->fields) self->reader_.let_go(*arrived->fields);
      }};
  PGALLOC_RETURN_IF_ERROR(
      file_->link().request(wire::Op::kCache, payload, std::move(exchange), patience));
  if (!arrived->good) return not_the_protocol();
  arrived->fields ? holds_.count_hit() : holds_.count_miss();
  if (!arrived->fields) return Taken();
  const std::optional<HeldValue> value = held(*arrived->fields);
  if (!value) return not_the_protocol();
  return Taken(std::pair(std::move(arrived->key), *value));
}

Result<StoreStats> RemoteStore::stats(const Patience& patience) {
  const Result<std::string> answer = call(wire::CacheCall::kStats, {}, patience);
  if (!answer.ok()) return answer.status().clone();
  StoreStats all;
  if (!wire::Reader(*answer).read_all(all.hits, all.misses, all.sets, all.evictions, all.discards,
                                      all.expirations, all.entries, all.value_bytes, all.page_bytes,
                                      all.index_bytes, all.size)) {
    return not_the_protocol();
  }
  return all;
}

Result<Store::Incremented> RemoteStore::increment(std::string_view key, int64_t delta,
                                                  std::optional<int64_t> initial,
                                                  const Patience& patience) {
  std::string arguments;
  wire::append(arguments, static_cast<uint8_t>(initial ? 1 : 0), delta, initial.value_or(0));
  append_text(arguments, key);
  const Result<std::string> answer = call(wire::CacheCall::kIncrement, arguments, patience);
  if (!answer.ok()) return answer.status().clone();
  uint8_t what = 0;
  Store::Incremented done;
  if (!wire::Reader(*answer).read_all(what, done.number) || what > Store::Incremented::kNoNumber) {
    return not_the_protocol();
  }
  done.what = static_cast<Store::Incremented::What>(what);
  return done;
}

Result<bool> RemoteStore::touch(std::string_view key, uint64_t lasts_ns, const Patience& patience) {
  std::string arguments;
  wire::append(arguments, lasts_ns);
  append_text(arguments, key);
  return yes_or_no(call(wire::CacheCall::kTouch, arguments, patience));
}

}  // namespace pgalloc::cache
