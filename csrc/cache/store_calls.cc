// What other processes want of a cache: the broker's thread does it, with the broker's lock, so nothing here waits. What they
// say is checked before it is used.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstring>
#include <limits>
#include <new>

#include "cache/sizes.h"
#include "cache/store.h"
#include "guard/commit_gate.h"

namespace pgalloc::cache {
namespace {

using wire::CacheCall;

// Values that go in one step: about 2 ms.
constexpr uint64_t kAtOnce = 4096;

// No reader sends this.
Status malformed() { return Status::error(ErrorCode::kSharing, ""); }

// A text that comes after its length.
bool read_text(wire::Reader& reader, std::string_view* left, std::string_view* text) {
  uint32_t length = 0;
  if (!reader.read(length) || length > reader.left().size()) return false;
  *text = reader.left().substr(0, length);
  *left = reader.left().substr(length);
  reader = wire::Reader(*left);
  return true;
}
bool read_key(wire::Reader& reader, std::string_view* key) {
  std::string_view left;
  return read_text(reader, &left, key) && !key->empty();
}

template <class... Fields>
std::optional<std::string> answer(const Fields&... fields) {
  std::string text;
  wire::append(text, fields...);
  return text;
}

}  // namespace

Store::Answer Store::call(uint64_t reader, CacheCall call, std::string_view arguments,
                          uint64_t* progress) {
  PGALLOC_RETURN_IF_ERROR(check_usable());
  wire::Reader fields(arguments);
  std::string_view key;
  uint64_t number = 0;
  switch (call) {
    case CacheCall::kPut:
      return put_for(reader, arguments, progress);
    case CacheCall::kPutPart:
      return put_part(reader, arguments, progress);
    case CacheCall::kRemove:
      if (!read_key(fields, &key) || !fields.left().empty()) return malformed();
      return answer(static_cast<uint8_t>(remove(key)));
    case CacheCall::kRemoveTagged:
      if (!read_key(fields, &key) || !fields.left().empty()) return malformed();
      number = remove_tagged(key, kAtOnce);
      *progress += number;
      if (number == kAtOnce) return std::optional<std::string>();
      return answer(*progress);
    case CacheCall::kClear:
      if (!fields.left().empty()) return malformed();
      if (!clear(kAtOnce)) return std::optional<std::string>();
      return answer();
    case CacheCall::kEvict:
      if (!fields.read_all(number)) return malformed();
      return evict_for(number, progress);
    case CacheCall::kTake:
      if (!read_key(fields, &key) || !fields.left().empty()) return malformed();
      return take_for(reader, key);
    case CacheCall::kTakeNext:
      if (!fields.left().empty()) return malformed();
      return take_for(reader, std::nullopt);
    case CacheCall::kStats: {
      if (!fields.left().empty()) return malformed();
      const StoreStats all = stats();
      return answer(all.hits, all.misses, all.sets, all.evictions, all.discards, all.expirations,
                    all.entries, all.value_bytes, all.page_bytes, all.index_bytes, all.size);
    }
    case CacheCall::kIncrement:
      return increment_for(arguments, progress);
    case CacheCall::kTouch: {
      if (!fields.read(number) || !read_key(fields, &key) || !fields.left().empty()) {
        return malformed();
      }
      const Result<bool> done = touch(key, expiry_in(number));
      if (!done.ok()) return done.status().clone();
      return answer(static_cast<uint8_t>(*done));
    }
    case CacheCall::kIndex:
    case CacheCall::kAttach:
    case CacheCall::kDetach:
      break;  // the session's
  }
  return malformed();
}

// In steps; what went before is in `progress`.
Store::Answer Store::evict_for(uint64_t bytes, uint64_t* progress) {
  const uint64_t before = count();
  const uint64_t gone = evict(bytes - std::min(bytes, *progress), kAtOnce);
  *progress += gone;
  const bool more = gone > 0 && *progress < bytes && before - std::min(before, count()) >= kAtOnce;
  if (more) return std::optional<std::string>();
  return answer(*progress);
}

uint64_t Store::expiry_in(uint64_t ns) const {
  if (ns == 0) return 0;
  const uint64_t now = now_ns();
  return ns < std::numeric_limits<uint64_t>::max() - now ? now + ns : 0;
}

// --- Putting -------------------------------------------------------------------------------------

// Whether so much may be committed now. Else values of this cache go; and if that does not do, the request is to be asked
// again, for a tenth of a second.
Result<bool> Store::has_room_for(uint64_t bytes, uint64_t* progress) {
  constexpr std::chrono::milliseconds kPatience{100};
  if (!commit_gate().lacks(bytes)) return true;
  (void)discard(bytes, std::numeric_limits<uint64_t>::max());
  if (!commit_gate().lacks(bytes)) return true;
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  const auto now_ns = static_cast<uint64_t>(std::chrono::nanoseconds(now).count());
  if (*progress == 0) {
    *progress = now_ns + static_cast<uint64_t>(std::chrono::nanoseconds(kPatience).count());
  }
  if (now_ns < *progress) return false;
  return Status::error(ErrorCode::kOutOfMemory,
                       "the owner of the Cache has no room for the value below its memory limits");
}

// Pages; nothing if that has to wait.
Result<std::optional<FileRange>> Store::allocate_for(const AllocateRequest& request,
                                                     uint64_t index_bytes, uint64_t* progress) {
  const Result<bool> room = has_room_for(request.length + index_bytes, progress);
  if (!room.ok()) return room.status().clone();
  if (!*room) return std::optional<FileRange>();
  bool must_wait = false;
  Result<FileRange> pages = file_->allocate(request, /*may_wait=*/false, &must_wait);
  if (must_wait) return std::optional<FileRange>();
  if (!pages.ok()) return std::move(pages).status();
  return std::optional(*pages);
}

// Without an answer if it has to wait.
Result<std::optional<Store::Put>> Store::put_copy(const Item& item, std::string_view data,
                                                  uint64_t* progress) {
  constexpr int kSlabsMax = 8;  // which others may fill before this value comes
  for (int i = 0; shares_pages(data.size()) && i < kSlabsMax; ++i) {
    const Result<Put> done = put_small(item, data);
    if (!done.ok()) return done.status().clone();
    if (*done != Put::kWantsSlab) return std::optional(*done);
    const Result<std::optional<FileRange>> pages = allocate_for(
        {.length = slab_bytes_for(data.size()), .mode = AllocationMode::kAllocateAndCommit},
        make_index_room(item, slab_bytes_for(data.size()) / slot_bytes_for(data.size()),
                        slab_bytes_for(data.size())),
        progress);
    if (!pages.ok()) return pages.status().clone();
    if (!*pages) return std::optional<Put>();
    const Result<char*> mapped = file_->map(**pages);
    Status status = mapped.ok() ? add_slab(item, **pages, slot_bytes_for(data.size()))
                                : mapped.status().clone();
    if (!status.ok()) {
      give_back(**pages);
      return status;
    }
  }
  const Result<std::optional<FileRange>> pages = allocate_for(
      {.length = pages_for(data.size()), .will_be_overwritten = true, .huge = HugeWish::kIfUseful},
      index_to_come(item, 1), progress);
  if (!pages.ok()) return pages.status().clone();
  if (!*pages) return std::optional<Put>();
  Status status = write_value(**pages, 0, data);
  if (status.ok()) status = write_zeros(**pages, data.size());
  Result<bool> done =
      status.ok() ? put_pages(item, **pages, data.size()) : Result<bool>(std::move(status));
  if (!done.ok() || !*done) give_back(**pages);
  if (!done.ok()) return std::move(done).status();
  return std::optional(*done ? Put::kDone : Put::kRefused);
}

Status Store::write_value(FileRange pages, uint64_t at, std::string_view data) {
  if (data.empty()) return {};
  const Result<char*> address = file_->map(pages);
  if (!address.ok()) return address.status().clone();
  return file_->write(pages.start + at, data.data(), data.size());
}

Status Store::write_zeros(FileRange pages, uint64_t from) {
  const std::string zeros(pages.length() - from, '\0');  // less than a page, or a short value's
  return zeros.empty() ? Status() : file_->write(pages.start + from, zeros.data(), zeros.size());
}

Store::Answer Store::put_for(uint64_t reader, std::string_view arguments, uint64_t* progress) {
  constexpr uint8_t kOnlyIfNone = 1, kTagged = 2, kInFile = 4, kInParts = 8;
  wire::Reader fields(arguments);
  uint8_t bits = 0;
  uint64_t lasts_ns = 0;
  uint64_t length = 0;
  std::string_view key, tag, left;
  if (!fields.read(bits, lasts_ns) || !read_key(fields, &key) || !read_text(fields, &left, &tag) ||
      !fields.read(length) || (bits & kTagged ? tag.empty() : !tag.empty())) {
    return malformed();
  }
  Item item{.key = key,
            .tag = bits & kTagged ? std::optional(tag) : std::nullopt,
            .expires_ns = expiry_in(lasts_ns),
            .only_if_none = (bits & kOnlyIfNone) != 0};
  const uint64_t size = size_of(length, item);
  if (bytes_max_ && size > *bytes_max_) {
    if (bits & kInParts) {
      if (const auto pending = take_pending(reader)) give_back(pending->pages);
    }
    return answer(uint8_t{2}, size);
  }
  const auto told = [](Put put) { return answer(static_cast<uint8_t>(put == Put::kDone)); };
  if (bits & kInParts) {
    const auto pending = take_pending(reader);
    if (!pending) return malformed();
    const bool whole = pending->length == length && pending->written == length;
    Result<bool> done = whole ? put_pages(item, pending->pages, length) : Result<bool>(malformed());
    if (!done.ok() || !*done) give_back(pending->pages);
    if (!done.ok()) return std::move(done).status();
    return told(*done ? Put::kDone : Put::kRefused);
  }
  std::string_view data = fields.left();
  if (bits & kInFile) {
    if (!data.empty() || length > HoldsFile::kValueBytes) return malformed();
    MutexLock lock(mu_);
    const Reader* const its = find_reader(reader);
    if (its == nullptr) return malformed();
    // It lives as long as the session that asks. What it writes meanwhile is its own value.
    data = {its->file.value(), length};
  } else if (data.size() != length) {
    return malformed();
  }
  const Result<std::optional<Put>> done = put_copy(item, data, progress);
  if (!done.ok()) return done.status().clone();
  if (!*done) return std::optional<std::string>();
  return told(**done);
}

// A part of a value that is too long for the file.
Store::Answer Store::put_part(uint64_t reader, std::string_view arguments, uint64_t* progress) {
  uint64_t length = 0;
  uint64_t at = 0;
  uint64_t part = 0;
  if (!wire::Reader(arguments).read_all(length, at, part) || part > HoldsFile::kValueBytes ||
      length > kMaxOffset || at > length || part > length - at) {
    return malformed();
  }
  if (at == 0) {
    if (const auto old = take_pending(reader)) give_back(old->pages);
    const Result<std::optional<FileRange>> pages = allocate_for(
        {.length = pages_for(length), .will_be_overwritten = true, .huge = HugeWish::kIfUseful},
        /*index_bytes=*/0, progress);
    if (!pages.ok()) return pages.status().clone();
    if (!*pages) return std::optional<std::string>();
    if (Status status = write_zeros(**pages, align_down(length, page_size())); !status.ok()) {
      give_back(**pages);
      return status;
    }
    MutexLock lock(mu_);
    find_reader(reader)->pending = Pending{**pages, length, 0};
  }
  Pending pending;
  std::string_view data;
  {
    MutexLock lock(mu_);
    const Reader* const its = find_reader(reader);
    if (its == nullptr || !its->pending || its->pending->length != length ||
        its->pending->written != at) {
      return malformed();
    }
    pending = *its->pending;
    data = {its->file.value(), part};
  }
  PGALLOC_RETURN_IF_ERROR(write_value(pending.pages, at, data));
  MutexLock lock(mu_);
  find_reader(reader)->pending->written = at + part;
  return answer();
}

std::optional<Store::Pending> Store::take_pending(uint64_t reader) {
  MutexLock lock(mu_);
  Reader* const its = find_reader(reader);
  return its == nullptr ? std::nullopt : std::exchange(its->pending, std::nullopt);
}

// --- Others --------------------------------------------------------------------------------------

// What is taken is held for the reader from before it leaves the index.
Store::Answer Store::take_for(uint64_t reader, std::optional<std::string_view> key) {
  Bin bin(leavings_);
  MutexLock lock(mu_);
  catch_up(bin);
  const Reader* const its = find_reader(reader);
  const auto entry = key ? find(*key, hash(*key)) : next_entry();
  if (its == nullptr || !entry) return answer(uint8_t{0});
  const Fields fields = writer_.fields(*entry);
  std::string text;
  wire::append(text, uint8_t{1}, fields.place, fields.length, fields.holder);
  if (!key) text += index_.keys().at(fields.key_place, fields.key_length);
  Holds<SharedMemory> holds = its->file.holds();
  if (!holds.add(fields.holder)) return answer(uint8_t{0});
  remove_entry(*entry, bin);
  return std::optional(std::move(text));
}

Store::Answer Store::increment_for(std::string_view arguments, uint64_t* progress) {
  wire::Reader fields(arguments);
  uint8_t bits = 0;
  int64_t delta = 0;
  int64_t initial = 0;
  std::string_view key;
  if (!fields.read(bits, delta, initial) || !read_key(fields, &key) || !fields.left().empty()) {
    return malformed();
  }
  const auto first = bits & 1 ? std::optional(initial) : std::nullopt;
  const Result<Incremented> done =
      increment(key, delta, first,
                [&](const Item& item, std::string_view digits) -> Result<std::optional<Put>> {
                  return put_copy(item, digits, progress);
                });
  if (!done.ok()) return done.status().clone();
  if (done->waits) return std::optional<std::string>();
  return answer(static_cast<uint8_t>(done->what), done->number);
}

}  // namespace pgalloc::cache
