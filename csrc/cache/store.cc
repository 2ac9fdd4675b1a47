#include "cache/store.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <utility>

#include "base/check.h"
#include "base/reserve.h"
#include "cache/sizes.h"
#include "cache/store_bin.h"
#include "guard/commit_gate.h"

namespace pgalloc::cache {
namespace {

// Values of a store without a limit: what is never used of its index takes no memory.
constexpr uint64_t kEntriesMax = uint64_t{1} << 26;
constexpr uint64_t kEntryBytesMin = 40;  // of a value and its index, at least
constexpr uint32_t kFirstTableBits = 2;

uint64_t entries_max(const StoreOptions& options) {
  if (!options.bytes_max) return kEntriesMax;
  return std::clamp<uint64_t>(*options.bytes_max / kEntryBytesMin, 256, kEntriesMax);
}

}  // namespace

// --- Making and ending one -----------------------------------------------------------------------

Result<std::shared_ptr<Store>> Store::create(std::shared_ptr<MemoryFile> file,
                                             const StoreOptions& options) {
  auto index = IndexFile::create(entries_max(options));
  if (!index.ok()) return std::move(index).status();
  std::shared_ptr<Store> store(new Store(std::move(file), std::move(*index), options), destroy);
  store->file_->discarder().add_keeper(*store);
  return store;
}

Store::Store(std::shared_ptr<MemoryFile> file, IndexFile index, const StoreOptions& options)
    : file_(std::move(file)),
      bytes_max_(options.bytes_max),
      remembers_discarded_(options.remembers_discarded),
      secret_(index.secret()),
      index_(std::move(index)),
      writer_(index_.index(), kFirstTableBits),
      holders_(static_cast<uint32_t>(index_.index().entry_count)),
      queue_(options.policy) {}

void Store::destroy(Store* store) {
  if (store->generation_ != process_generation()) {
    // A forked child: the lock may be held by a thread that is not here, and the index is not mapped. What the kernel
    // counts goes back; the rest is left.
    store->index_.forget_in_child();
    const_cast<std::shared_ptr<MemoryFile>&>(store->file_).reset();
    return;
  }
  store->close();
  store->file_->discarder().remove_keeper(*store);
  delete store;
}

Store::~Store() {
  return_pages(nullptr);
  if (unreturned_ == nullptr) return;
  for (Holder* next = unreturned_; next != nullptr;) {
    const std::unique_ptr<Holder> holder(std::exchange(next, next->next_garbage));
  }
  try {
    file_->warn("pages of a Cache could not be given back: no memory is left");
  } catch (const std::bad_alloc&) {  // NOLINT: the file has them until it is closed
  }
}

Status Store::check_usable() const {
  if (generation_ != process_generation()) {
    return Status::error(ErrorCode::kForked,
                         "this Cache is the parent process's: make one in the forked child, or "
                         "serve() it in the parent and Cache.connect() in the child");
  }
  if (closed_.load(std::memory_order_acquire) || file_->closed()) {
    return Status::error(ErrorCode::kClosed, "the Cache is closed");
  }
  return {};
}

void Store::close() {
  if (closed_.exchange(true) || generation_ != process_generation()) return;
  Bin bin(*this);
  MutexLock lock(mu_);
  remove_all(bin);
  discarded_.clear();
  index_.release();
}

// --- Looking -------------------------------------------------------------------------------------

std::optional<uint64_t> Store::find(std::string_view key, uint32_t hash) const {
  if (closed_.load(std::memory_order_relaxed)) return std::nullopt;  // there is no index any more
  return writer_.find(hash, [&](const Fields& fields) {
    return index_.keys().is(fields.key_place, fields.key_length, key);
  });
}

Store::Value Store::hold(const Fields& fields) {
  Holder& holder = holders_.at(fields.holder);
  if (holder.views++ == 0 && !holder.open) queue_.pinned(holder.waiting);
  return {&holder, holder.pages(), fields.place, fields.length};
}

std::optional<Store::Value> Store::get(std::string_view key, Look look) {
  const uint32_t its_hash = hash(key);
  Bin bin(*this);
  MutexLock lock(mu_);
  if (const auto entry = find(key, its_hash)) {
    const Fields fields = writer_.fields(*entry);
    if (fields.expires_ns == 0 || fields.expires_ns > now_ns()) {
      if (look == Look::kCounted) ++stats_.hits;
      return hold(fields);
    }
  }
  if (look == Look::kCounted) ++stats_.misses;
  catch_up(bin);
  return std::nullopt;
}

bool Store::contains(std::string_view key) {
  Bin bin(*this);
  MutexLock lock(mu_);
  catch_up(bin);
  return find(key, hash(key)).has_value();
}

std::optional<Store::Value> Store::take(std::string_view key) {
  Bin bin(*this);
  MutexLock lock(mu_);
  catch_up(bin);
  const auto entry = find(key, hash(key));
  if (!entry) {
    ++stats_.misses;
    return std::nullopt;
  }
  ++stats_.hits;
  const Value value = hold(writer_.fields(*entry));
  remove_entry(*entry, bin);
  return value;
}

std::optional<std::pair<std::string, Store::Value>> Store::take_next() {
  Bin bin(*this);
  MutexLock lock(mu_);
  catch_up(bin);
  const auto entry = next_entry();
  if (!entry) return std::nullopt;
  const Fields fields = writer_.fields(*entry);
  std::string key = index_.keys().at(fields.key_place, fields.key_length);
  const Value value = hold(fields);
  remove_entry(*entry, bin);
  return std::pair(std::move(key), value);
}

void Store::let_go(Holder& holder) {
  Bin bin(*this);
  {
    MutexLock lock(mu_);
    PGALLOC_CHECK(holder.views > 0);
    if (--holder.views > 0) return;
    if (holder.gone) {
      bin.add(std::unique_ptr<Holder>(&holder));
      return;
    }
    if (holder.open) return;
    queue_.unpinned(holder.waiting);
  }
  commit_gate().note_unpinned();
}

// --- Coming --------------------------------------------------------------------------------------

uint64_t Store::index_bytes_of(const Item& item) const {
  return index_bytes_for(item.key.size(), item.expires_ns != 0, item.tag.has_value(),
                         item.tag ? item.tag->size() : 0);
}

uint64_t Store::size_of(uint64_t length, const Item& item) const {
  const uint64_t pages = shares_pages(length) ? slab_bytes_for(length) : pages_for(length);
  return counted(pages, index_bytes_of(item));
}

bool Store::shares_pages(uint64_t length) const {
  // A small cache would be all slabs that are being filled.
  const bool few = bytes_max_ && *bytes_max_ < 64 * slab_bytes_for(length);
  return length <= small_value_max() && !few;
}

// All that may fail: room in the index, and memory for what is known of the value, one of so many.
Status Store::prepare(Draft& draft, const Item& item, Bin& bin, size_t at_once) {
  constexpr uint64_t kKeyMax = std::numeric_limits<uint32_t>::max() / 2;
  if (item.key.size() > kKeyMax) {
    return Status::error(ErrorCode::kOutOfMemory, "the key is too long");
  }
  draft.fields.hash = hash(item.key);
  draft.fields.expires_ns = item.expires_ns;
  draft.fields.key_length = static_cast<uint32_t>(item.key.size());
  while (true) {
    while (!writer_.has_room(at_once) && writer_.grow()) {
    }
    if (writer_.has_room(at_once)) {
      if (const auto place = index_.keys().add(item.key)) {
        draft.fields.key_place = *place;
        draft.has_key = true;
        break;
      }
    }
    if (!evict_one(bin)) {
      return Status::error(ErrorCode::kOutOfMemory, "the index of the Cache has no room for the key");
    }
  }
  if (item.tag) draft.tag = &tags_.claim(*item.tag, writer_.entries_used() + at_once);
  if (item.expires_ns != 0) expiries_.reserve(at_once);
  if (remembers_discarded_) {
    const size_t keys = writer_.size() + discarded_.size() + at_once;
    if (keys > discarded_.capacity()) discarded_.reserve(2 * keys);
  }
  return {};
}

// The value is the key's from here on.
void Store::enter(Draft& draft, Holder& holder, uint32_t slot, uint64_t length, Bin& bin) {
  Fields& fields = draft.fields;
  fields.place = holder.place_of(slot);
  fields.length = length;
  fields.holder = holder.number;
  const KeyArena& keys = index_.keys();
  const std::optional<uint64_t> before = writer_.find(fields.hash, [&](const Fields& its) {
    return keys.is_same(its.key_place, its.key_length, fields.key_place, fields.key_length);
  });
  const Fields old = before ? writer_.fields(*before) : Fields{};
  const auto entry = before ? writer_.replace(*before, fields) : writer_.add(fields);
  PGALLOC_CHECK(entry.has_value());
  draft.has_key = false;
  if (before) forget(*before, old);  // after the index: others may be looking
  holders_.set(holder, slot, *entry);
  if (draft.tag != nullptr) tags_.add(*entry, *draft.tag);
  if (fields.expires_ns != 0) {
    expiries_.add(fields.expires_ns, *entry);
    ++expiring_;
  }
  stats_.value_bytes += length;
  stats_.index_bytes += index_bytes_of(*entry, fields);
  ++stats_.sets;
  if (before) leave_slot(old, bin);
}

Result<bool> Store::put_small(const Item& item, std::string_view data) {
  const uint64_t cost = index_bytes_of(item);
  const uint64_t slab_bytes = slab_bytes_for(data.size());
  Bin bin(*this);
  MutexLock lock(mu_);
  PGALLOC_RETURN_IF_ERROR(check_usable());
  catch_up(bin);
  if (item.only_if_none && find(item.key, hash(item.key))) return true;
  Draft draft(*this);
  PGALLOC_RETURN_IF_ERROR(prepare(draft, item, bin));
  make_way(0, cost, item.key, bin);
  auto found = find_slot(data.size(), bin);
  if (!found && !fits(slab_bytes, cost, {})) found = take_slot_of(item, data.size(), bin);
  if (!found) {
    make_way(slab_bytes, cost, {}, bin);
    return false;
  }
  const auto [slab, slot] = *found;
  const uint64_t place = slab->place_of(slot);
  const Result<char*> address = file_->map({slab->pages().start, slab->pages().end});
  if (!address.ok()) {
    holders_.vacate(*slab, slot);
    return address.status().clone();
  }
  std::memcpy(*address + (place - slab->pages().start), data.data(), data.size());
  enter(draft, *slab, slot, data.size(), bin);
  return true;
}

Status Store::add_slab(const Item& item, FileRange pages, uint32_t slot_bytes) {
  {
    Bin bin(*this);
    MutexLock lock(mu_);
    PGALLOC_RETURN_IF_ERROR(check_usable());
    make_way(pages.length(), index_bytes_of(item), {}, bin);  // what the key has stays until then
    if (Holder* const open = holders_.open_slab(slot_bytes)) end_filling(*open, bin);
    const Result<Holder*> slab = add_waiting(pages, slot_bytes, std::nullopt);
    if (!slab.ok()) return slab.status().clone();
    queue_.remove((*slab)->waiting);
    holders_.open(**slab);
  }
  commit_gate().note_unpinned();
  return {};
}

Result<bool> Store::put_pages(const Item& item, FileRange pages, uint64_t length) {
  const uint64_t cost = index_bytes_of(item);
  {
    Bin bin(*this);
    MutexLock lock(mu_);
    PGALLOC_RETURN_IF_ERROR(check_usable());
    catch_up(bin);
    if (item.only_if_none && find(item.key, hash(item.key))) return false;
    Draft draft(*this);
    PGALLOC_RETURN_IF_ERROR(prepare(draft, item, bin));
    make_way(pages.length(), cost, item.key, bin);
    const Result<Holder*> holder = add_waiting(pages, 0, hash_of(item.key, secret_));
    if (!holder.ok()) return holder.status().clone();
    enter(draft, **holder, 0, length, bin);
  }
  commit_gate().note_unpinned();
  return true;
}

// A new holder, in the queue of what may go. `hash`: by which it is known when it comes back, as a value with pages of
// its own does. As before if it fails.
Result<Holder*> Store::add_waiting(FileRange pages, uint32_t slot_bytes,
                                   std::optional<uint64_t> hash) {
  Holder* const holder = holders_.add(pages, slot_bytes);
  if (holder == nullptr) {
    return Status::error(ErrorCode::kOutOfMemory, "the Cache has too many values");
  }
  if (hash) holder->waiting.hash = *hash;
  Status status;
  try {
    status = file_->discarder().begin_keep(pages);
  } catch (...) {
    (void)holders_.remove(*holder);
    throw;
  }
  if (!status.ok()) {
    (void)holders_.remove(*holder);
    return status;
  }
  holder->kept = true;
  queue_.unpinned(holder->waiting);
  return holder;
}

// Whether no process may be reading there. One that was forked while a value was held has a lease on the pages.
bool Store::may_reuse(const Holder& holder) const {
  if (holder.views > 0 || !writer_.may_reuse(holder.number)) return false;
  const Result<bool> has_no_lease = file_->references().has_unique_ref(holder.pages());
  return has_no_lease.ok() && *has_no_lease;
}

// A slot for a value of this length in a slab that exists.
std::optional<std::pair<Holder*, uint32_t>> Store::find_slot(uint64_t length, Bin& bin) {
  const uint32_t slot_bytes = slot_bytes_for(length);
  if (Holder* const slab = holders_.open_slab(slot_bytes)) {
    auto slot = holders_.take_slot(*slab, /*reuse=*/false);
    if (!slot && may_reuse(*slab)) slot = holders_.take_slot(*slab, /*reuse=*/true);
    if (slot) return std::pair(slab, *slot);
    end_filling(*slab, bin);
  }
  // What came with an image may have to be awaited; what is filled since it came need not.
  constexpr int kTries = 4;
  for (int i = 0; i < kTries && !file_->incomplete(); ++i) {
    Holder* const slab = holders_.first_vacant(slot_bytes);
    if (slab == nullptr) break;
    if (!may_reuse(*slab)) {
      holders_.put_off(*slab);
      continue;
    }
    queue_.remove(slab->waiting);
    holders_.open(*slab);
    return std::pair(slab, *holders_.take_slot(*slab, /*reuse=*/true));
  }
  return std::nullopt;
}

// The slot of the value that the key has, which goes, if its successor can have it: no slab has to go.
// REQUIRES: no slab of its slot size is open.
std::optional<std::pair<Holder*, uint32_t>> Store::take_slot_of(const Item& item, uint64_t length,
                                                                Bin& bin) {
  const auto entry = find(item.key, hash(item.key));
  if (!entry || file_->incomplete()) return std::nullopt;
  Holder& slab = holders_.at(writer_.fields(*entry).holder);
  if (slab.slot_bytes != slot_bytes_for(length) || !may_reuse(slab)) return std::nullopt;
  queue_.remove(slab.waiting);
  holders_.open(slab);  // first: so it stays, if this is its only value
  remove_entry(*entry, bin);
  return std::pair(&slab, *holders_.take_slot(slab, /*reuse=*/true));
}

void Store::end_filling(Holder& slab, Bin& bin) {
  if (slab.live == 0) return drop(slab, bin);  // there may be views of what it held
  if (slab.views == 0) queue_.unpinned(slab.waiting);
  holders_.close(slab);
}

}  // namespace pgalloc::cache
