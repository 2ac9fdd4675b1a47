// Purpose: what one cache holds: its values in pages of a file, the index of their keys, and which of them go.
//
// Thread safety: any thread of the process that made it, but no forked child. The lock is never held across an
// allocation of pages, nor a wait: the guard may discard values from within one.
//
// Invariants
//   1. The size, which is what pages and index count for, is at most `bytes_max` between calls.
//   2. A value that is held stays as it is until let_go(), whatever becomes of its key.
//   3. What is given back to the kernel has left the index first.
//   4. A call that fails leaves all as it was, but for what had to make way.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "base/process_generation.h"
#include "base/status.h"
#include "cache/bin.h"
#include "cache/draft.h"
#include "cache/expiries.h"
#include "cache/holders.h"
#include "cache/holds_file.h"
#include "cache/index_file.h"
#include "cache/index_writer.h"
#include "cache/tags.h"
#include "cache/value_source.h"
#include "file/keeper.h"
#include "file/memory_file.h"
#include "pages/discard_queue.h"
#include "sharing/shared_cache.h"

namespace pgalloc::cache {

struct StoreOptions {
  DiscardPolicy policy = DiscardPolicy::kS3Fifo;
  std::optional<uint64_t> bytes_max;
  bool remembers_discarded = false;  // see take_discarded()
};

// What is said of a value. Keys and tags are encoded, see binding/cache_keys.h.
struct Item {
  std::string_view key;
  std::optional<std::string_view> tag;
  uint64_t expires_ns = 0;        // by the file's clock; 0: never
  bool only_if_none = false;      // do nothing if the key has a value
  uint64_t only_in_place_of = 0;  // do nothing unless it has this very one: see counter()
};

struct StoreStats {
  uint64_t hits = 0;
  uint64_t misses = 0;
  uint64_t sets = 0;
  uint64_t evictions = 0;
  uint64_t discards = 0;
  uint64_t expirations = 0;
  uint64_t entries = 0;
  uint64_t value_bytes = 0;
  uint64_t page_bytes = 0;
  uint64_t index_bytes = 0;
  uint64_t size = 0;
};

class Store final : public Keeper, public SharedCache, public ValueSource {
 public:
  static Result<std::shared_ptr<Store>> create(std::shared_ptr<MemoryFile> file,
                                               const StoreOptions& options);
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  MemoryFile& file() const { return *file_; }
  std::optional<uint64_t> bytes_max() const { return bytes_max_; }
  DiscardPolicy policy() const { return policy_; }
  // When what is to last so long expires, by the file's clock; 0 for ever.
  uint64_t expiry_in(uint64_t ns) const;
  // kForked, or kClosed if the store is closed, or its file.
  Status check_usable() const;

  // --- Values --------------------------------------------------------------------------------------

  using Value = HeldValue;
  enum class Look : uint8_t { kCounted, kUncounted };
  std::optional<Value> get(std::string_view key, Look look = Look::kCounted) EXCLUDES(mu_);
  bool contains(std::string_view key) EXCLUDES(mu_);
  // Removes it and gives what it was.
  std::optional<Value> take(std::string_view key) EXCLUDES(mu_);
  // That which would go next, with its key.
  std::optional<std::pair<std::string, Value>> take_next() EXCLUDES(mu_);
  void let_go(uint64_t hold) override EXCLUDES(mu_);
  // While values are held, the mapping that they are in.
  std::shared_ptr<ChunkMap> chunks() const { return file_->chunks(); }

  // What a value of this length counts for, at least.
  uint64_t size_of(uint64_t length, const Item& item) const;
  uint64_t index_bytes_of(const Item& item) const;
  // How much memory the index will take for so many more values like this: none where it has what others have left.
  uint64_t index_to_come(const Item& item, uint64_t count) EXCLUDES(mu_);
  // The same where they come with so many pages. If memory is short, others leave first: what the guard discards brings
  // pages only, and for an index that grows all of them would go.
  uint64_t make_index_room(const Item& item, uint64_t count, uint64_t page_bytes) EXCLUDES(mu_);
  // Whether values of this length share pages here.
  bool shares_pages(uint64_t length) const;
  // Copies a value that shares pages. Without effect if the item does not allow it, or there is no slab for it: then
  // add_slab() one.
  enum class Put : uint8_t { kDone, kRefused, kWantsSlab };
  Result<Put> put_small(const Item& item, std::string_view data) EXCLUDES(mu_);
  // A new slab, for this value first. Takes over the caller's reference on its pages.
  Status add_slab(const Item& item, FileRange pages, uint32_t slot_bytes) EXCLUDES(mu_);
  // A value that is written to pages of its own, of which it takes over the caller's reference. False, without effect,
  // if there is one and it was not to be replaced.
  Result<bool> put_pages(const Item& item, FileRange pages, uint64_t length) EXCLUDES(mu_);
  bool remove(std::string_view key) EXCLUDES(mu_);
  // A value that is a number in decimal digits, and what else is known of it: to be set anew in its place.
  struct Counter {
    std::optional<int64_t> number;  // unless it is none
    uint64_t version = 0;
    uint64_t expires_ns = 0;
    std::optional<std::string> tag;
  };
  Result<std::optional<Counter>> counter(std::string_view key) EXCLUDES(mu_);
  // Adds to it, or to `initial` if there is none. The tag and the time stay. `put` sets the value as the item says; without
  // an answer it has to wait, and so has this.
  using PutDigits = std::function<Result<std::optional<Put>>(const Item&, std::string_view digits)>;
  struct Incremented {
    enum What : uint8_t { kNothing, kDone, kNoNumber };  // that fits 64 bits
    What what = kNothing;
    int64_t number = 0;
    bool waits = false;
  };
  Result<Incremented> increment(std::string_view key, int64_t delta, std::optional<int64_t> initial,
                                const PutDigits& put) EXCLUDES(mu_);
  // The value expires then; whether there is one.
  Result<bool> touch(std::string_view key, uint64_t expires_ns) EXCLUDES(mu_);
  // Of these three so much at a time: `most` values, or a few more.
  static constexpr uint64_t kAll = UINT64_MAX;
  uint64_t remove_tagged(std::string_view tag, uint64_t most = kAll) EXCLUDES(mu_);
  // Whether that was all.
  bool clear(uint64_t most = kAll) EXCLUDES(mu_);
  // Gives up that much or a little more, as the policy says. The bytes given up.
  uint64_t evict(uint64_t bytes, uint64_t most = kAll) EXCLUDES(mu_);
  // Releases all values; calls afterwards find none.
  void close() EXCLUDES(mu_);

  // --- All of them ---------------------------------------------------------------------------------

  // The keys, one behind the other, and where each ends.
  struct Keys {
    std::string bytes;
    std::vector<uint64_t> ends;
  };
  Keys keys() EXCLUDES(mu_);
  // A key whose value was discarded since, if they are remembered.
  std::optional<std::string> take_discarded() EXCLUDES(mu_);
  uint64_t count() EXCLUDES(mu_);
  uint64_t size() EXCLUDES(mu_);
  StoreStats stats() EXCLUDES(mu_);
  // What an image says of it.
  struct SavedValue {
    uint64_t offset = 0;  // in the pages
    uint64_t length = 0;
    uint64_t expires_ns = 0;
    std::string key;
    std::optional<std::string> tag;
  };
  struct SavedHolder {
    FileRange pages;
    uint32_t slot_bytes = 0;
    std::vector<SavedValue> values;
  };
  std::vector<SavedHolder> save() EXCLUDES(mu_);
  // Pages that came with an image, and their values. kSnapshotCorrupt if they cannot be so, kRange or kRefCount if
  // the pages are not there to be adopted.
  Status restore(const SavedHolder& saved) EXCLUDES(mu_);
  std::optional<std::string> verify() EXCLUDES(mu_);

  // --- Other processes: store_sharing.cc, store_calls.cc ------------------------------------------

  uint64_t id() const override { return id_; }
  bool is_complete() const override { return !file_->incomplete(); }
  std::string described() const override;

  Result<os::Descriptor> index_file() const override EXCLUDES(mu_);
  Result<uint64_t> attach() override EXCLUDES(mu_);
  Result<uint64_t> attach_copy_of(uint64_t reader) override EXCLUDES(mu_);
  Result<os::Descriptor> holds_file(uint64_t reader) const override EXCLUDES(mu_);
  void detach(uint64_t reader) noexcept override EXCLUDES(mu_);
  Result<std::optional<std::string>> call(uint64_t reader, wire::CacheCall call,
                                          std::string_view arguments, uint64_t* progress) override
      EXCLUDES(mu_);

  // --- Keeper --------------------------------------------------------------------------------------

  std::optional<uint64_t> next_order() override EXCLUDES(mu_);
  Discarded discard(uint64_t bytes_max, uint64_t order_max) override EXCLUDES(mu_);
  void before_fork() override NO_THREAD_SAFETY_ANALYSIS;
  void after_fork_in_parent() override NO_THREAD_SAFETY_ANALYSIS;

 private:
  Store(std::shared_ptr<MemoryFile> file, IndexFile index, const StoreOptions& options);
  ~Store() override = default;
  static void destroy(Store* store);

  uint32_t hash(std::string_view key) const { return static_cast<uint32_t>(hash_of(key, secret_)); }
  uint64_t now_ns() const { return static_cast<uint64_t>(file_->clock().now().count()); }
  uint64_t size_locked() const REQUIRES(mu_);
  std::optional<uint64_t> find(std::string_view key, uint32_t hash) const REQUIRES(mu_);
  uint64_t index_to_come_locked(const Item& item, uint64_t count) const REQUIRES(mu_);
  std::optional<uint64_t> find_living(std::string_view key, uint32_t hash) const REQUIRES(mu_);
  Value hold(const Fields& fields) REQUIRES(mu_);
  void catch_up(Bin& bin) REQUIRES(mu_);
  uint64_t index_bytes_of(uint64_t entry, const Fields& fields) const REQUIRES(mu_);

  // A long value that a reader puts part by part: pages that no value has yet.
  struct Pending {
    FileRange pages;
    uint64_t length = 0;
    uint64_t written = 0;
  };

  // For others: store_calls.cc.
  using Answer = Result<std::optional<std::string>>;
  Answer put_for(uint64_t reader, std::string_view arguments, uint64_t* progress);
  Answer put_part(uint64_t reader, std::string_view arguments, uint64_t* progress);
  Answer take_for(uint64_t reader, std::optional<std::string_view> key) EXCLUDES(mu_);
  Answer increment_for(std::string_view arguments, uint64_t* progress);
  Answer evict_for(uint64_t bytes, uint64_t* progress);
  Result<bool> has_room_for(uint64_t bytes, uint64_t* progress);
  Result<std::optional<FileRange>> allocate_for(const AllocateRequest& request,
                                                uint64_t index_bytes, uint64_t* progress);
  Result<std::optional<Put>> put_copy(const Item& item, std::string_view data, uint64_t* progress);
  Status write_value(FileRange pages, uint64_t at, std::string_view data);
  Status write_zeros(FileRange pages, uint64_t from);
  std::optional<Pending> take_pending(uint64_t reader) EXCLUDES(mu_);

  // Coming: store.cc.
  bool may_put(const Item& item) const REQUIRES(mu_);
  Status prepare(Draft& draft, const Item& item, Bin& bin, size_t at_once = 1) REQUIRES(mu_);
  void enter(Draft& draft, Holder& holder, uint32_t slot, uint64_t length, Bin& bin) REQUIRES(mu_);
  void enter_in_place(Draft& draft, Holder& holder, uint32_t slot, uint64_t old,
                      const Fields& before) REQUIRES(mu_);
  void know(uint64_t entry, Draft& draft) REQUIRES(mu_);
  std::optional<std::pair<Holder*, uint32_t>> find_slot(uint64_t length, Bin& bin) REQUIRES(mu_);
  std::optional<std::pair<Holder*, uint32_t>> take_slot_of(const Item& item, uint64_t length,
                                                           Bin& bin) REQUIRES(mu_);
  void end_filling(Holder& slab, Bin& bin) REQUIRES(mu_);
  Result<Holder*> add_waiting(FileRange pages, uint32_t slot_bytes, std::optional<uint64_t> hash)
      REQUIRES(mu_);
  void forget_new(Holder& holder) REQUIRES(mu_);
  Status take_over(const SavedHolder& saved) EXCLUDES(mu_);
  bool may_reuse(const Holder& holder) const REQUIRES(mu_);

  // Going: store_leaving.cc.
  void remove_entry(uint64_t entry, Bin& bin) REQUIRES(mu_);
  void forget(uint64_t entry, const Fields& fields, bool remember_key = false) REQUIRES(mu_);
  void leave_slot(const Fields& fields, Bin& bin) REQUIRES(mu_);
  uint64_t remove_holder(Holder& holder, bool remember, Bin& bin) REQUIRES(mu_);
  void drop(Holder& holder, Bin& bin) REQUIRES(mu_);
  void delete_if_free(std::unique_ptr<Holder> gone, Bin& bin) REQUIRES(mu_);
  void look_at_limbo(size_t count, Bin& bin) REQUIRES(mu_);
  Holder* next_victim(size_t tries) REQUIRES(mu_);
  bool remove_all(uint64_t most, Bin& bin) REQUIRES(mu_);
  bool fits(uint64_t page_bytes, uint64_t index_bytes, std::string_view key) const REQUIRES(mu_);
  void make_way(uint64_t page_bytes, uint64_t index_bytes, std::string_view key, Bin& bin)
      REQUIRES(mu_);
  bool evict_one(Bin& bin) REQUIRES(mu_);
  std::optional<uint64_t> next_entry() REQUIRES(mu_);

  const std::shared_ptr<MemoryFile> file_;
  Leavings leavings_{*file_};
  const uint64_t id_;
  const DiscardPolicy policy_;
  const std::optional<uint64_t> bytes_max_;
  const bool remembers_discarded_;
  const HashSecret secret_;
  const uint32_t generation_ = process_generation();
  std::atomic<bool> closed_{false};
  mutable Mutex mu_{LockRank::kCache};
  IndexFile index_;  // what is in it: GUARDED_BY(mu_)
  IndexWriter<SharedMemory> writer_ GUARDED_BY(mu_);
  Holders holders_ GUARDED_BY(mu_);
  DiscardQueue queue_ GUARDED_BY(mu_);
  Tags tags_ GUARDED_BY(mu_);
  Expiries expiries_ GUARDED_BY(mu_);
  uint64_t expiring_ GUARDED_BY(mu_) = 0;                                 // values that expire
  std::vector<std::pair<uint32_t, uint32_t>> discarded_ GUARDED_BY(mu_);  // keys: place and length
  // Holders that are gone, and that other processes hold: the first of a ring.
  Holder* limbo_ GUARDED_BY(mu_) = nullptr;
  size_t limbo_size_ GUARDED_BY(mu_) = 0;
  struct Reader {
    uint64_t number;
    HoldsFile file;
    std::optional<Pending> pending;
  };
  Reader* find_reader(uint64_t number) REQUIRES(mu_);
  void give_back(FileRange pages) noexcept;
  std::vector<Reader> readers_ GUARDED_BY(mu_);  // as many as the writer's, in the same order
  uint64_t last_reader_ GUARDED_BY(mu_) = 0;
  StoreStats stats_ GUARDED_BY(mu_);  // but for what there is now, which is counted elsewhere
};

}  // namespace pgalloc::cache
