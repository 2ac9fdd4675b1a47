#include "cache/remote_store.h"

#include <algorithm>
#include <chrono>
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

std::string payload_of(wire::CacheCall call) {
  std::string payload;
  wire::append(payload, static_cast<uint8_t>(call));
  return payload;
}

// An answer that brings a file.
Result<Reply> ask(OwnerLink& link, wire::CacheCall call, const OwnerLink::Patience& patience) {
  const auto reply = std::make_shared<Reply>();
  OwnerLink::Exchange exchange{[reply](OwnerLink::Reply& arrived) {
                                 reply->payload = arrived.payload;
                                 reply->file = os::Descriptor(std::exchange(arrived.descriptor, -1));
                               },
                               {}};
  PGALLOC_RETURN_IF_ERROR(
      link.request(wire::Op::kCache, payload_of(call), std::move(exchange), patience));
  if (!reply->file.open()) {
    return Status::error(ErrorCode::kSharing, "the owner has sent no file of its cache");
  }
  return std::move(*reply);
}

void detach(OwnerLink& link, uint64_t reader) try {
  std::string payload = payload_of(wire::CacheCall::kDetach);
  wire::append(payload, reader);
  link.post(wire::Op::kCache, payload, {});
} catch (const std::bad_alloc&) {  // NOLINT: the owner finds out when the connection ends
}

uint64_t now_ns() {
  return static_cast<uint64_t>(std::chrono::nanoseconds(
                                   std::chrono::steady_clock::now().time_since_epoch())
                                   .count());
}

}  // namespace

Result<std::shared_ptr<RemoteStore>> RemoteStore::attach(std::shared_ptr<PeerFile> file,
                                                         const OwnerLink::Patience& patience) {
  OwnerLink& link = file->link();
  Result<Reply> index_reply = ask(link, wire::CacheCall::kIndex, patience);
  if (!index_reply.ok()) return std::move(index_reply).status();
  Result<IndexFile> index = IndexFile::map(std::move(index_reply->file));
  if (!index.ok()) return std::move(index).status();
  Result<Reply> holds_reply = ask(link, wire::CacheCall::kAttach, patience);
  if (!holds_reply.ok()) return std::move(holds_reply).status();
  uint64_t reader = 0;
  if (!wire::Reader(holds_reply->payload).read_all(reader)) {
    return Status::error(ErrorCode::kSharing, "the owner does not follow the protocol");
  }
  Result<HoldsFile> holds =
      HoldsFile::map(std::move(holds_reply->file), index->index().entry_count);
  if (!holds.ok()) {
    detach(link, reader);
    return std::move(holds).status();
  }
  return std::shared_ptr<RemoteStore>(
      new RemoteStore(std::move(file), std::move(*index), std::move(*holds), reader));
}

RemoteStore::RemoteStore(std::shared_ptr<PeerFile> file, IndexFile index, HoldsFile holds,
                         uint64_t reader)
    : file_(std::move(file)),
      reader_number_(reader),
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
  if (--held_ == 0) detach(file_->link(), reader_number_);
}

Status RemoteStore::check_usable() const {
  if (generation_ != process_generation()) {
    return Status::error(ErrorCode::kForked,
                         "this CacheReader is the parent process's: connect() again in the child");
  }
  if (closed_.load(std::memory_order_acquire)) {
    return Status::error(ErrorCode::kClosed, "the CacheReader is closed");
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

std::optional<HeldValue> RemoteStore::get(std::string_view key, bool counted) {
  const std::optional<Fields> found = hold(key);
  if (counted) found ? holds_.count_hit() : holds_.count_miss();
  if (!found) return std::nullopt;
  if (found->place > kMaxOffset || found->length > kMaxOffset - found->place) {
    reader_.let_go(*found);  // no owner says this
    return std::nullopt;
  }
  ++held_;
  file_->begin_value();
  const uint64_t end = found->place + std::max<uint64_t>(found->length, 1);
  return HeldValue{.hold = found->holder,
                   .pages = {align_down(found->place, page_size()), align_up(end, page_size())},
                   .place = found->place,
                   .length = found->length};
}

bool RemoteStore::contains(std::string_view key) {
  const std::optional<Fields> found = hold(key);
  if (found) reader_.let_go(*found);
  return found.has_value();
}

void RemoteStore::let_go(uint64_t hold) {
  holds_.holds().remove(static_cast<uint32_t>(hold));
  if (--held_ == 0) detach(file_->link(), reader_number_);
  file_->end_value();
}

}  // namespace pgalloc::cache
