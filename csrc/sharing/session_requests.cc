// What a peer asks for, an operation each. What it holds is in session.cc.

#include "sharing/session.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <new>

#include "os/retry.h"
#include "os/syscalls.h"
#include "sharing/payer.h"
#include "sharing/plant.h"

namespace pgalloc {

using os::sys;
using wire::Op;

namespace {

template <class... Fields>
Answer answer_with(const Fields&... fields) {
  Answer answer;
  wire::append(answer.payload, fields...);
  return answer;
}
// What changes something begins with this: its answer must not fail for want of memory.
Answer answer_with_room() {
  Answer answer;
  answer.payload.reserve(64);
  return answer;
}
Answer refuse(Status status) { return {.status = std::move(status)}; }
Answer malformed() { return {.malformed = true}; }

Status sharing_error(std::string message) {
  return Status::error(ErrorCode::kSharing, std::move(message));
}

bool are_pages(FileRange range) {
  return range.start < range.end && range.end <= kMaxOffset &&
         is_aligned(range.start, page_size()) && is_aligned(range.end, page_size());
}
Status no_pages() {
  return Status::error(ErrorCode::kRange, "the range is empty or not page-aligned");
}

// The pages that are the whole payload; nothing, and the answer, if they are none.
std::optional<wire::Pages> pages_of(const Request& request, std::optional<Answer>* answer) {
  wire::Pages pages;
  if (!wire::Reader(request.payload).read_all(pages)) {
    *answer = malformed();
    return std::nullopt;
  }
  if (are_pages(pages.range)) return pages;
  *answer = refuse(no_pages());
  return std::nullopt;
}

// A reference of the caller's becomes a lease of the peer's; it ends if that fails.
Status take_over(Share& share, FileRange range) {
  Status status;
  try {
    status = share.table().add(range);
  } catch (...) {
    (void)share.file()->dec_ref(range);
    throw;
  }
  if (!status.ok()) (void)share.file()->dec_ref(range);
  return status;
}

// Memory has run out in the middle of a claim: at most what was claimed stays the peer's until it ends.
void give_back_claimed(LeaseTable& table, FileRange range) noexcept {
  try {
    if (!range.empty()) (void)table.remove(range);
  } catch (const std::bad_alloc&) {  // NOLINT: see above
  }
}

// A description of its own: read-only stays read-only, wherever it is passed.
Result<os::Descriptor> reopen(const os::Descriptor& file, bool readonly) {
  char path[32];
  std::snprintf(path, sizeof path, "/proc/self/fd/%d", file.fd());
  const int flags = (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC;
  const int own = os::retry_interrupted([&] { return sys().open(path, flags, 0); });
  if (own < 0) {
    const int error = errno;
    struct stat status{};
    if (error != ENOENT || sys().lstat("/proc/self/fd", &status) == 0)
      return Status::system_error(error, "open");
    return Status::error(ErrorCode::kSharing,
                         "the owner of these pages has no /proc, through which it opens memory for "
                         "others: mount one where it runs (mount -t proc proc /proc)");
  }
  os::Descriptor descriptor(own);
  if (!descriptor.open()) return Status::system_error(errno, "fstat");
  if (!file.is_same_file(descriptor.fd())) {
    return Status::error(ErrorCode::kSharing,
                         "the owner's descriptor of these pages was closed from outside");
  }
  return descriptor;
}

}  // namespace

std::optional<Answer> Session::step(Request& request) {
  switch (request.op) {
    case Op::kOpen:
      return open(request);
    case Op::kClaim:
      return claim(request);
    case Op::kOffer:
      return offer(request);
    case Op::kAllocate:
      return allocate(request);
    case Op::kRelease:
      return release(request);
    case Op::kDecommit:
      return decommit(request);
    case Op::kUnique:
      return unique(request);
    case Op::kUnpin:
      return unpin(request);
    case Op::kPin:
      return pin(request);
    case Op::kUsage:
      return usage_of_file(request);
    case Op::kPing:
      return ping(request);
    case Op::kServed:
      return served(request);
    case Op::kCache:
      return call_cache(request);
    case Op::kMakeRoom:
      return make_room(request);
    case Op::kHello:
    case Op::kPart:
    case Op::kFork:
      break;  // the broker's
  }
  return malformed();
}

void Session::give_up(Request& request) { offers_.drop_later(std::move(request.begun)); }

bool Session::undo_of(Request& request) noexcept {
  wire::Secret secret{};
  switch (request.op) {
    case Op::kOffer:
      if (wire::Reader(request.answer.payload).read_all(secret)) offers_.withdraw(secret);
      return false;
    case Op::kAllocate:
    case Op::kClaim:
      request.payload = std::move(request.answer.payload);
      request.payload.resize(sizeof(wire::Pages));
      request.op = Op::kRelease;
      request.number = 0;
      request.progress = 0;
      return true;
    default:
      return false;
  }
}

std::optional<Answer> Session::open(Request& request) {
  uint64_t name = 0;
  if (!wire::Reader(request.payload).read_all(name)) return malformed();
  Result<InUse> held = use(name);
  if (!held.ok()) return refuse(std::move(held).status());
  Answer answer;
  describe(*(*held)->share.file(), &answer);
  return answer;
}

// What a peer needs to know of a file to map it. Without a descriptor, the status says why.
void Session::describe(MemoryFile& file, Answer* answer) const {
  constexpr size_t kLabelMax = 1000;
  wire::append(answer->payload, file.id(), file.capacity(), uint8_t{scope.readonly},
               std::string_view(file.options().label).substr(0, kLabelMax));
  const auto use = FileInUse::begin(file);
  if (!use) {
    answer->status = Status::error(ErrorCode::kClosed, "the owner has closed the MemoryFile");
    return;
  }
  Result<os::Descriptor> descriptor = reopen(file.descriptor(), scope.readonly);
  if (descriptor.ok()) {
    answer->descriptor = std::move(*descriptor);
  } else {
    answer->status = std::move(descriptor).status();
  }
}

// The lease of the offer becomes the peer's, piece by piece.
std::optional<Answer> Session::claim(Request& request) {
  if (request.begun.empty()) {
    wire::Secret secret{};
    if (!wire::Reader(request.payload).read_all(secret)) {
      return refuse(sharing_error("this is no name of pages that were sent"));
    }
    request.answer = answer_with_room();
    Result<Offers::Places> claimed = offers_.claim_place(secret);
    if (!claimed.ok()) return refuse(std::move(claimed).status());
    request.begun = std::move(*claimed);
    const Offer& offer = request.begun.front();
    wire::append(request.answer.payload, wire::Pages{offer.file->id(), offer.range});
    if (!offer.file->closed() && !shares_.contains(offer.file->id())) {
      add_description(*offer.file, &request.answer);
    }
  }
  Offer& offer = request.begun.front();
  if (offer.file->closed()) {
    give_up(request);
    return refuse(Status::error(ErrorCode::kClosed, "the owner has closed the MemoryFile"));
  }
  wire::Pages pages;
  wire::Reader(request.answer.payload).read(pages);
  const InUse held = hold(offer.file);
  LeaseTable& table = held->share.table();
  Status status;
  try {
    for (size_t left = kSegmentsAtOnce; status.ok() && !offer.range.empty();) {
      if (left == 0) return std::nullopt;
      const FileRange piece = table.front(offer.range, &left);
      status = table.add_lease(piece);
      if (status.ok()) offer.range.start = piece.end;
    }
  } catch (const std::bad_alloc&) {
    give_back_claimed(table, {pages.range.start, offer.range.start});
    throw;
  }
  if (!status.ok()) give_back_claimed(table, {pages.range.start, offer.range.start});
  if (strikes(Plant::kEarly)) (void)table.remove(pages.range);
  give_up(request);  // of what is left
  if (!status.ok()) return refuse(std::move(status));
  return std::move(request.answer);
}

// Of a file that the peer has nothing of: what kOpen would bring, so that the owner may end once all it
// sent is claimed. Where that fails, the peer asks.
void Session::add_description(MemoryFile& file, Answer* answer) const try {
  Answer description;
  describe(file, &description);
  if (!description.status.ok()) return;
  answer->payload += description.payload;
  answer->descriptor = std::move(description.descriptor);
  answer->descriptor_is_spare = true;
} catch (const std::bad_alloc&) {  // NOLINT: then the peer asks
}

std::optional<Answer> Session::offer(Request& request) {
  if (!request.answer.status.ok()) return take_back_offer(request);
  std::optional<Answer> answer;
  const auto pages = pages_of(request, &answer);
  if (!pages) return answer;
  const auto fail = [&](Status why) -> std::optional<Answer> {
    if (request.begun.empty()) return refuse(std::move(why));
    request.answer.status = std::move(why);
    return take_back_offer(request);
  };
  Result<InUse> held = use_writable(pages->file);
  if (!held.ok()) return fail(std::move(held).status());
  Share& share = (*held)->share;
  Answer given = answer_with_room();
  Status status;
  for (size_t left = kSegmentsAtOnce; status.ok();) {
    if (left == 0) return std::nullopt;
    const uint64_t start = pages->range.start + request.progress;
    const FileRange piece = share.front({start, pages->range.end}, &left);
    status = share.need(pages->range, piece);
    if (status.ok() && request.begun.empty()) {
      Offer offer = Offer::now(share.file(), {start, start}, id, shown_pid, uid);
      offer.process = usage_->number;
      offer.seen = std::max(pid, 0);
      request.begun.push_back(std::move(offer));
      Offer whole = request.begun.front();
      whole.range = pages->range;
      status = offers_.check_room(whole, scope.limits.unclaimed);
    }
    if (status.ok()) status = share.file()->references().lease_anew(piece);
    if (!status.ok()) break;
    Offer& offer = request.begun.front();
    offer.range.end = piece.end;
    request.progress = piece.end - pages->range.start;
    if (offer.range != pages->range) continue;
    Result<wire::Secret> secret = offers_.add(offer, scope.limits.unclaimed);
    if (secret.ok()) {
      wire::append(given.payload, *secret);
      request.begun.clear();
      return given;
    }
    status = std::move(secret).status();
  }
  return fail(std::move(status));
}

// It fails; what it had leased already is given back first, so that a peer that goes on asking waits for
// that.
std::optional<Answer> Session::take_back_offer(Request& request) {
  size_t left = kSegmentsAtOnce;
  if (!drop_front(request.begun.front(), &left)) return std::nullopt;
  give_up(request);
  return refuse(std::move(request.answer.status));
}

std::optional<Answer> Session::allocate(Request& request) {
  uint64_t name = 0;
  AllocateRequest wanted;
  uint8_t kind = 0;
  uint8_t direction = 0;
  uint8_t huge = 0;
  if (!wire::Reader(request.payload)
           .read_all(name, wanted.length, kind, direction, wanted.memcg_id, huge)) {
    return malformed();
  }
  if (kind >= static_cast<uint8_t>(MemoryKind::kMapped) ||
      direction > static_cast<uint8_t>(Direction::kTopDown) ||
      huge > static_cast<uint8_t>(HugeWish::kAsked)) {
    return refuse(Status::error(ErrorCode::kOption, "unknown kind, direction or wish"));
  }
  wanted.huge = static_cast<HugeWish>(huge);
  wanted.kind = static_cast<MemoryKind>(kind);
  wanted.direction = static_cast<Direction>(direction);
  Result<InUse> held = use_writable(name);
  if (!held.ok()) return refuse(std::move(held).status());
  Answer given = answer_with_room();
  Status status;
  Share& share = (*held)->share;
  const uint64_t most = bytes_max(*share.file());
  const uint64_t bytes = usage_->bytes_of(name);
  if (wanted.length > most || bytes > most - wanted.length) {
    status =
        Status::error(ErrorCode::kOutOfMemory,
                      "a process that is a peer of this file may hold " + std::to_string(most) +
                          " bytes, has " + std::to_string(bytes) + " and asks for " +
                          std::to_string(wanted.length) + " (Limits.nbytes of its serve())");
  } else {
    bool must_wait = false;
    Result<FileRange> range = share.file()->allocate(wanted, /*may_wait=*/false, &must_wait);
    if (must_wait) {
      request.waits = true;
      return std::nullopt;
    }
    if (range.ok()) {
      status = take_over(share, *range);
      if (status.ok()) {
        wire::append(given.payload, wire::Pages{name, *range});
        if (wanted.huge != HugeWish::kNone) {
          const bool came_true = share.file()->is_for_huge_pages(*range);
          wire::append(given.payload, static_cast<uint8_t>(came_true));
        }
        return given;
      }
    } else {
      status = std::move(range).status();
    }
  }
  return refuse(std::move(status));
}

std::optional<Answer> Session::release(Request& request) {
  if (request.payload.size() % sizeof(wire::Pages) != 0) return malformed();
  Answer answer;
  if (!give_back(request, request.payload.size(), &answer.status)) return std::nullopt;
  return answer;
}

bool Session::release_first(Request& request) {
  if (request.released == 0) return true;
  Status status;  // as of a kRelease: there is no answer
  if (!give_back(request, request.released, &status)) return false;
  request.payload.erase(0, std::exchange(request.released, 0));
  request.progress = 0;
  return true;
}

// The pages in the first bytes of the payload, up to one that cannot be given back. False if it has to
// wait for something, or there is more to do.
bool Session::give_back(Request& request, size_t bytes, Status* status) {
  wire::Reader reader(std::string_view(request.payload).substr(0, bytes).substr(request.progress));
  size_t left = kSegmentsAtOnce;
  for (wire::Pages pages; reader.read(pages);) {
    if (left == 0) return false;
    const auto found = shares_.find(pages.file);
    if (found == shares_.end() || !are_pages(pages.range)) {
      *status =
          found == shares_.end() ? sharing_error("the peer has nothing of this file") : no_pages();
      return true;
    }
    const InUse held(*this, *found->second);
    FileRange rest{pages.range.start + request.given_back, pages.range.end};
    while (!rest.empty()) {
      if (left == 0) return false;
      Result<FileRange> done = held->share.release_front(rest, &left);
      if (!done.ok()) {
        *status = std::move(done).status();
        return true;
      }
      if (done->empty()) {
        request.waits = left > 0;
        return false;
      }
      rest.start = done->end;
      request.given_back = rest.start - pages.range.start;
    }
    request.progress += sizeof pages;
    request.given_back = 0;
  }
  return true;
}

std::optional<Answer> Session::decommit(Request& request) {
  std::optional<Answer> answer;
  const auto pages = pages_of(request, &answer);
  if (!pages) return answer;
  Result<InUse> held = use_writable(pages->file);
  if (!held.ok()) return refuse(std::move(held).status());
  const uint64_t start = pages->range.start + request.progress;
  const uint64_t end = std::min(start + kPieceBytes, pages->range.end);
  // Anew at each step: the peer may have let go of pages.
  Status status = (*held)->share.need(pages->range, {start, end});
  if (status.ok()) status = (*held)->share.file()->decommit({start, end});
  if (status.ok() && end < pages->range.end) {
    request.progress = end - pages->range.start;
    return std::nullopt;
  }
  return Answer{.status = std::move(status)};
}

std::optional<Answer> Session::unique(Request& request) {
  std::optional<Answer> answer;
  const auto pages = pages_of(request, &answer);
  if (!pages) return answer;
  Result<InUse> held = use(pages->file);
  if (!held.ok()) return refuse(std::move(held).status());
  const Share& share = (*held)->share;
  FileRange rest{pages->range.start + request.progress, pages->range.end};
  for (size_t left = kSegmentsAtOnce; !rest.empty();) {
    if (left == 0) return std::nullopt;
    const FileRange piece = share.front(rest, &left);
    if (Status status = share.need(pages->range, piece); !status.ok()) {
      return refuse(std::move(status));
    }
    Result<bool> is_unique = share.file()->has_unique_ref(piece);
    if (!is_unique.ok()) return refuse(std::move(is_unique).status());
    if (!*is_unique) return answer_with(uint8_t{false});
    rest.start = piece.end;
    request.progress = rest.start - pages->range.start;
  }
  return answer_with(uint8_t{true});
}

std::optional<Answer> Session::unpin(Request& request) {
  std::optional<Answer> answer;
  const auto pages = pages_of(request, &answer);
  if (!pages) return answer;
  Result<InUse> held = use_writable(pages->file);
  if (!held.ok()) return refuse(std::move(held).status());
  Share& share = (*held)->share;
  if (request.progress == 0 && usage_->unpinned >= scope.limits.unpinned) {
    return refuse(sharing_error("a peer may have " + std::to_string(scope.limits.unpinned) +
                                " ranges unpinned at most"));
  }
  if (!payer_) payer_ = payer_of(pid, usage_->number);
  FileRange rest{pages->range.start + request.progress, pages->range.end};
  for (size_t left = kSegmentsAtOnce; !rest.empty();) {
    if (left == 0) return std::nullopt;
    Result<FileRange> piece = share.unpin_front(pages->range, rest.start, &left, *payer_);
    if (!piece.ok()) return refuse(std::move(piece).status());
    rest.start = piece->end;
    request.progress = rest.start - pages->range.start;
  }
  return answer_with(uint8_t{1});
}

std::optional<Answer> Session::pin(Request& request) {
  std::optional<Answer> answer;
  const auto pages = pages_of(request, &answer);
  if (!pages) return answer;
  Result<InUse> held = use(pages->file);
  if (!held.ok()) return refuse(std::move(held).status());
  Share& share = (*held)->share;
  FileRange rest{pages->range.start + request.progress, pages->range.end};
  bool intact = true;
  for (size_t left = kSegmentsAtOnce; !rest.empty();) {
    if (left == 0) return std::nullopt;
    Result<FileRange> piece = share.pin_front(pages->range, rest.start, &left, &intact);
    if (!piece.ok()) {
      if (!forked_ || piece.status().code() != ErrorCode::kRefCount) {
        return refuse(std::move(piece).status());
      }
      return refuse(Status::error(
          ErrorCode::kForked,
          "this allocation was unpinned when the process forked: it is the parent's"));
    }
    if (piece->empty()) {
      request.waits = true;
      return std::nullopt;
    }
    rest.start = piece->end;
    request.progress = rest.start - pages->range.start;
  }
  return answer_with(uint8_t{intact});
}

std::optional<Answer> Session::usage_of_file(Request& request) {
  uint64_t name = 0;
  uint32_t memcg_id = 0;
  if (!wire::Reader(request.payload).read_all(name, memcg_id)) return malformed();
  Result<InUse> held = use(name);
  if (!held.ok()) return refuse(std::move(held).status());
  if (Status counts = (*held)->share.file()->check_accounting(); !counts.ok()) {
    return refuse(std::move(counts));
  }
  const Ledger& ledger = (*held)->share.file()->ledger();
  const KindBytes bytes = memcg_id == 0 ? ledger.total() : ledger.memcg(memcg_id);
  Answer answer;
  for (const uint64_t of_kind : bytes) wire::append(answer.payload, of_kind);
  return answer;
}

// Answered when all that was given back before is back.
std::optional<Answer> Session::ping(Request&) {
  return answer_with(static_cast<uint32_t>(::getpid()));
}

std::optional<Answer> Session::served(Request&) {
  if (scope.file == nullptr) return refuse(sharing_error("nothing is served here"));
  return answer_with(scope.file->id(), uint8_t{scope.cache != nullptr});
}

// Children of the owner know all of its caches, as its files; others the one that is served to them.
std::shared_ptr<SharedCache> Session::cache_of(uint64_t id) const {
  if (id == 0) return scope.cache;
  if (scope.cache != nullptr && scope.cache->id() == id) return scope.cache;
  return knows_all_ ? SharedCache::find(id) : nullptr;
}

std::optional<Answer> Session::call_cache(Request& request) {
  uint8_t number = 0;
  uint64_t id = 0;
  wire::Reader arguments(request.payload);
  if (!arguments.read(number, id)) return malformed();
  const auto call = static_cast<wire::CacheCall>(number);
  if (call <= wire::CacheCall::kAttach) {
    const std::shared_ptr<SharedCache> cache = cache_of(id);
    if (cache == nullptr) return refuse(sharing_error("no cache is served here"));
    if (!arguments.left().empty()) return malformed();
    if (!cache->is_complete()) {
      request.waits = true;
      return std::nullopt;
    }
    // The last to let go of it may not be here, under the lock.
    attached_.reserve(attached_.size() + 1);
    Answer answer = call == wire::CacheCall::kIndex ? describe_cache(*cache) : attach(cache);
    const bool known =
        std::ranges::any_of(attached_, [&](const Attached& each) { return each.cache == cache; });
    if (!known) attached_.push_back({cache, 0, {}});
    return answer;
  }
  uint64_t reader = 0;
  if (!arguments.read(reader)) return malformed();
  const auto attached = std::ranges::find_if(attached_, [&](const Attached& each) {
    return reader != 0 && each.reader == reader && (id == 0 || each.cache->id() == id);
  });
  if (attached == attached_.end()) return refuse(sharing_error("not attached to the cache"));
  if (call == wire::CacheCall::kDetach) {
    if (!arguments.left().empty()) return malformed();
    attached->cache->detach(std::exchange(attached->reader, 0));
    return Answer();
  }
  Result<std::optional<std::string>> done =
      attached->cache->call(reader, call, arguments.left(), &request.progress);
  if (!done.ok()) {
    if (done.status().message().empty()) return malformed();
    return refuse(std::move(done).status());
  }
  if (!*done) {
    request.waits = true;
    return std::nullopt;
  }
  Answer answer;
  answer.payload = std::move(**done);
  return answer;
}

Answer Session::describe_cache(const SharedCache& cache) {
  Answer answer;
  answer.payload = cache.described();
  Result<os::Descriptor> file = cache.index_file();
  if (!file.ok()) return refuse(std::move(file).status());
  answer.descriptor = std::move(*file);
  return answer;
}

Answer Session::attach(const std::shared_ptr<SharedCache>& cache) {
  const auto count =
      std::ranges::count_if(attached_, [](const Attached& each) { return each.reader != 0; });
  if (static_cast<size_t>(count) >= kAttachedMax) {
    return refuse(sharing_error("a connection may be attached to caches " +
                                std::to_string(kAttachedMax) + " times at most"));
  }
  Answer answer = answer_with_room();
  const Result<uint64_t> reader = cache->attach();
  if (!reader.ok()) return refuse(reader.status().clone());
  Result<os::Descriptor> file = cache->holds_file(*reader);
  if (!file.ok()) {
    cache->detach(*reader);
    return refuse(std::move(file).status());
  }
  const auto left = std::ranges::find_if(
      attached_, [&](const Attached& each) { return each.reader == 0 && each.cache == cache; });
  Attached& place = left == attached_.end() ? attached_.emplace_back() : *left;
  place = {cache, *reader, FileIdentity::of(file->fd())};
  wire::append(answer.payload, *reader);
  answer.descriptor = std::move(*file);
  return answer;
}

std::optional<Answer> Session::make_room(Request& request) {
  uint64_t bytes = 0;
  uint64_t commit = 0;
  if (!wire::Reader(request.payload).read_all(bytes, commit)) return malformed();
  if (scope.readonly) {
    return refuse(
        Status::error(ErrorCode::kPermission,
                      "these pages are shared for reading only: no room is made for that"));
  }
  Answer answer = answer_with_room();
  payer_ = payer_of(pid, usage_->number);  // anew: it may have been moved
  wire::append(answer.payload, make_room_for(*payer_, pid, std::min(bytes, kPieceBytes), commit));
  return answer;
}

}  // namespace pgalloc
