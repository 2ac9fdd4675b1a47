#include "cache/store.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>

#include "base/check.h"
#include "base/reserve.h"
#include "cache/sizes.h"
#include "guard/commit_gate.h"

namespace pgalloc::cache {
namespace {

// Values of a store without a limit: what is never used of its index takes no memory.
constexpr uint64_t kEntriesAtMost = uint64_t{1} << 26;
constexpr uint64_t kEntryBytesMin = 40;  // of a value and its index, at least
constexpr uint32_t kFirstTableBits = 2;
constexpr size_t kLimboLooks = 4;  // with each value that comes

uint64_t entries_max(const StoreOptions& options) {
  if (!options.bytes_max) return kEntriesAtMost;
  return std::clamp<uint64_t>(*options.bytes_max / kEntryBytesMin, 256, kEntriesAtMost);
}

// Of this process; a child's own are others, because it has none of its parent's.
uint64_t next_id() {
  static std::atomic<uint64_t> last{0};
  return last.fetch_add(1, std::memory_order_relaxed) + 1;
}

template <class Act>
class AtEnd {
 public:
  explicit AtEnd(Act act) : act_(act) {}
  ~AtEnd() { act_(); }
  AtEnd(const AtEnd&) = delete;
  AtEnd& operator=(const AtEnd&) = delete;

 private:
  Act act_;
};

}  // namespace

// --- Making and ending one -----------------------------------------------------------------------

Result<std::shared_ptr<Store>> Store::create(std::shared_ptr<MemoryFile> file,
                                             const StoreOptions& options) {
  auto index = IndexFile::create(entries_max(options));
  if (!index.ok()) return std::move(index).status();
  std::shared_ptr<Store> store(new Store(std::move(file), std::move(*index), options), destroy);
  store->file_->discarder().add_keeper(*store);
  list(store);
  return store;
}

Store::Store(std::shared_ptr<MemoryFile> file, IndexFile index, const StoreOptions& options)
    : file_(std::move(file)),
      id_(next_id()),
      policy_(options.policy),
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
  unlist(store->id_);
  store->close();
  store->file_->discarder().remove_keeper(*store);
  delete store;
}

Status Store::check_usable() const {
  if (generation_ != process_generation()) {
    return Status::error(ErrorCode::kForked,
                         "this Cache is the parent process's, to which this forked child has no "
                         "connection: serve() it in the parent and Cache.connect() in the child");
  }
  if (closed_.load(std::memory_order_acquire) || file_->closed()) {
    return Status::error(ErrorCode::kClosed, "the Cache is closed");
  }
  return {};
}

void Store::close() {
  if (closed_.exchange(true) || generation_ != process_generation()) return;
  Bin bin(leavings_);
  MutexLock lock(mu_);
  (void)remove_all(kAll, bin);
  discarded_.clear();
  index_.close();
  index_.release();
}

// --- Looking -------------------------------------------------------------------------------------

std::optional<uint64_t> Store::find(std::string_view key, uint32_t hash) const {
  if (closed_.load(std::memory_order_relaxed)) return std::nullopt;  // there is no index any more
  return writer_.find(hash, [&](const Fields& fields) {
    return index_.keys().is(fields.key_place, fields.key_length, key);
  });
}

// The same, if its time is not over.
std::optional<uint64_t> Store::find_living(std::string_view key, uint32_t hash) const {
  const auto entry = find(key, hash);
  if (!entry) return std::nullopt;
  const uint64_t expires_ns = writer_.fields(*entry).expires_ns;
  return expires_ns == 0 || expires_ns > now_ns() ? entry : std::nullopt;
}

Store::Value Store::hold(const Fields& fields) {
  Holder& holder = holders_.at(fields.holder);
  if (holder.views++ == 0 && !holder.open) queue_.pinned(holder.waiting);
  return {reinterpret_cast<uint64_t>(&holder), holder.pages(), fields.place, fields.length};
}

std::optional<Store::Value> Store::get(std::string_view key, Look look) {
  const uint32_t its_hash = hash(key);
  Bin bin(leavings_);
  MutexLock lock(mu_);
  if (const auto entry = find_living(key, its_hash)) {
    if (look == Look::kCounted) ++stats_.hits;
    return hold(writer_.fields(*entry));
  }
  if (look == Look::kCounted) ++stats_.misses;
  catch_up(bin);
  return std::nullopt;
}

bool Store::contains(std::string_view key) {
  Bin bin(leavings_);
  MutexLock lock(mu_);
  catch_up(bin);
  return find_living(key, hash(key)).has_value();
}

std::optional<Store::Value> Store::take(std::string_view key) {
  Bin bin(leavings_);
  MutexLock lock(mu_);
  catch_up(bin);
  const auto entry = find_living(key, hash(key));
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
  Bin bin(leavings_);
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

void Store::let_go(uint64_t hold) {
  Holder& holder = *reinterpret_cast<Holder*>(hold);  // NOLINT(performance-no-int-to-ptr)
  Bin bin(leavings_);
  {
    MutexLock lock(mu_);
    PGALLOC_CHECK(holder.views > 0);
    if (--holder.views > 0) return;
    if (holder.gone) {
      delete_if_free(std::unique_ptr<Holder>(&holder), bin);
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

uint64_t Store::index_to_come_locked(const Item& item, uint64_t count) const {
  const uint64_t free_entries = writer_.entries_used() - writer_.size();
  return index_.keys().bytes_to_come(item.key.size(), count) +
         (count > free_entries ? count - free_entries : 0) * kEntryBytes;
}

uint64_t Store::index_to_come(const Item& item, uint64_t count) {
  MutexLock lock(mu_);
  return index_to_come_locked(item, count);
}

uint64_t Store::make_index_room(const Item& item, uint64_t count, uint64_t page_bytes) {
  const uint64_t bytes = index_to_come(item, count);
  if (bytes == 0 || !commit_gate().lacks(page_bytes + bytes)) return bytes;
  Bin bin(leavings_);
  MutexLock lock(mu_);
  while (index_to_come_locked(item, count) > 0) {
    constexpr size_t kTries = 64;
    Holder* const holder = next_victim(kTries);
    if (holder == nullptr) break;
    stats_.discards += remove_holder(*holder, remembers_discarded_, bin);
  }
  return index_to_come_locked(item, count);
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

// Whether a value may be set as the item says.
bool Store::may_put(const Item& item) const {
  if (!item.only_if_none && item.only_in_place_of == 0) return true;
  const auto entry = find_living(item.key, hash(item.key));
  if (item.only_if_none) return !entry;
  return entry && writer_.version(*entry) == item.only_in_place_of;
}

// All that may fail: room in the index, and memory for what is known of the value, one of so many.
Status Store::prepare(Draft& draft, const Item& item, Bin& bin, size_t at_once) {
  constexpr uint64_t kKeyMax = std::numeric_limits<uint32_t>::max() / 2;
  if (item.key.size() > kKeyMax) {
    return Status::error(ErrorCode::kOutOfMemory, "the key is too long");
  }
  look_at_limbo(kLimboLooks, bin);
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
      return Status::error(ErrorCode::kOutOfMemory,
                           "the index of the Cache has no room for the key");
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
  if (before) forget(*before, old);  // after the index: others may be looking
  holders_.set(holder, slot, *entry);
  know(*entry, draft);
  ++stats_.sets;
  if (before) leave_slot(old, bin);
}

// The value stays where it is, and is known anew.
void Store::enter_in_place(Draft& draft, Holder& holder, uint32_t slot, uint64_t old,
                           const Fields& before) {
  draft.fields.place = before.place;
  draft.fields.length = before.length;
  draft.fields.holder = before.holder;
  const auto entry = writer_.replace(old, draft.fields);
  PGALLOC_CHECK(entry.has_value());
  forget(old, before);
  --holder.live;
  holders_.set(holder, slot, *entry);
  know(*entry, draft);
}

// What is known of a value beside the index and its place.
void Store::know(uint64_t entry, Draft& draft) {
  const Fields& fields = draft.fields;
  index_.set_entries_used(writer_.entries_used());
  draft.has_key = false;
  if (draft.tag != nullptr) tags_.add(entry, *draft.tag);
  if (fields.expires_ns != 0) {
    expiries_.add(fields.expires_ns, entry);
    ++expiring_;
  }
  stats_.value_bytes += fields.length;
  stats_.index_bytes += index_bytes_of(entry, fields);
}

Result<Store::Put> Store::put_small(const Item& item, std::string_view data) {
  const uint64_t cost = index_bytes_of(item);
  const uint64_t slab_bytes = slab_bytes_for(data.size());
  Bin bin(leavings_);
  MutexLock lock(mu_);
  PGALLOC_RETURN_IF_ERROR(check_usable());
  catch_up(bin);
  if (!may_put(item)) return Put::kRefused;
  // A slab that was added for this value may be more than there is room for, if the value does not come.
  const AtEnd fit([&]() NO_THREAD_SAFETY_ANALYSIS { make_way(0, 0, {}, bin); });
  Draft draft(index_.keys(), tags_);
  PGALLOC_RETURN_IF_ERROR(prepare(draft, item, bin));
  make_way(0, cost, item.key, bin);
  auto found = find_slot(data.size(), bin);
  if (!found && !fits(slab_bytes, cost, item.key)) found = take_slot_of(item, data.size(), bin);
  if (!found) {
    make_way(slab_bytes, cost, item.key, bin);
    return Put::kWantsSlab;
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
  return Put::kDone;
}

Status Store::add_slab(const Item& item, FileRange pages, uint32_t slot_bytes) {
  {
    Bin bin(leavings_);
    MutexLock lock(mu_);
    PGALLOC_RETURN_IF_ERROR(check_usable());
    make_way(pages.length(), index_bytes_of(item), item.key, bin);
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
    Bin bin(leavings_);
    MutexLock lock(mu_);
    PGALLOC_RETURN_IF_ERROR(check_usable());
    catch_up(bin);
    if (!may_put(item)) return false;
    Draft draft(index_.keys(), tags_);
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
  Holder* holder = holders_.add(pages, slot_bytes);
  if (holder == nullptr) {  // those in limbo have numbers, too
    Bin bin(leavings_);
    look_at_limbo(limbo_size_, bin);
    holder = holders_.add(pages, slot_bytes);
  }
  if (holder == nullptr) {
    return Status::error(ErrorCode::kOutOfMemory, "the Cache has too many values");
  }
  if (hash) holder->waiting.hash = *hash;
  Status status;
  try {
    status = file_->discarder().begin_keep(pages);
  } catch (...) {
    forget_new(*holder);
    throw;
  }
  if (!status.ok()) {
    forget_new(*holder);
    return status;
  }
  holder->kept = true;
  queue_.unpinned(holder->waiting);
  return holder;
}

void Store::forget_new(Holder& holder) { holders_.free_number(holders_.remove(holder)->number); }

// Whether no view shows it, and no other process holds it, or has it from a fork.
bool Store::may_reuse(const Holder& holder) const {
  if (holder.views > 0 || !writer_.may_reuse(holder.number)) return false;
  const Result<bool> unique = file_->has_unique_ref(holder.pages());
  return unique.ok() && *unique;
}

// A slot for a value of this length in a slab that exists.
std::optional<std::pair<Holder*, uint32_t>> Store::find_slot(uint64_t length, Bin& bin) {
  const uint32_t slot_bytes = slot_bytes_for(length);
  if (Holder* const slab = holders_.open_slab(slot_bytes)) {
    auto slot = holders_.take_slot(*slab, /*reuse=*/false);
    if (!slot && !slab->vacant.empty()) slot = holders_.take_slot(*slab, may_reuse(*slab));
    if (slot) return std::pair(slab, *slot);
    end_filling(*slab, bin);
  }
  if (file_->incomplete())
    return std::nullopt;  // its pages may have to come yet, and that would be waited for
  constexpr int kTries = 4;
  for (int i = 0; i < kTries; ++i) {
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
