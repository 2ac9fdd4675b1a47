// Purpose: another process's cache, as one that shares it has it. It looks values up by itself, in the cache's index and file,
// which it has mapped: nothing is asked of the owner for that. What changes something the owner does.
//
// Thread safety: any thread of the process that attached; in a forked child nothing but the end of views.
//
// Invariants
//   1. A value that was found stays as it is until let_go(), also when the owner has ended: see index_reader.h.
//   2. What the owner says is checked before it is used: values lie in the file, keys in the index.
//   3. A value that is on its way to the owner lies in its place until the owner has answered.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/process_generation.h"
#include "base/status.h"
#include "cache/holds_file.h"
#include "cache/index_file.h"
#include "cache/index_reader.h"
#include "cache/store.h"
#include "cache/value_source.h"
#include "sharing/peer_file.h"

namespace pgalloc::cache {

class RemoteStore final : public ValueSource, public std::enable_shared_from_this<RemoteStore> {
 public:
  using Patience = OwnerLink::Patience;

  // The cache of this number, in the process that the file is of; 0: the one that is served there. kSharing if there is
  // none.
  static Result<std::shared_ptr<RemoteStore>> attach(std::shared_ptr<PeerFile> file, uint64_t cache,
                                                     const Patience& patience);
  ~RemoteStore() override;
  RemoteStore(const RemoteStore&) = delete;
  RemoteStore& operator=(const RemoteStore&) = delete;

  PeerFile& file() const { return *file_; }
  uint64_t id() const { return facts_.id; }
  std::optional<uint64_t> bytes_max() const { return facts_.bytes_max; }
  DiscardPolicy policy() const { return facts_.policy; }
  bool is_of_this_process() const { return generation_ == process_generation(); }
  // kForked, or kClosed if close() was called, or the owner has closed the cache.
  Status check_usable() const;

  // --- Without the owner ---------------------------------------------------------------------------

  std::optional<HeldValue> get(std::string_view key, bool counted);
  bool contains(std::string_view key);
  void let_go(uint64_t hold) override;
  Store::Keys keys() const;
  // Values that are held stay; the owner is told when there are none any more.
  void close();

  // --- By the owner: for waiting and its errors see OwnerLink::request() ---------------------------

  struct Outcome {
    bool done = false;
    uint64_t counted = 0;  // for what it would count, if that is too much
  };
  // item.expires_ns is for how long.
  Result<Outcome> put(const Item& item, std::string_view data, const Patience& patience);
  Result<bool> remove(std::string_view key, const Patience& patience);
  Result<uint64_t> remove_tagged(std::string_view tag, const Patience& patience);
  Status clear(const Patience& patience);
  Result<uint64_t> evict(uint64_t bytes, const Patience& patience);
  using Taken = std::optional<std::pair<std::string, HeldValue>>;
  // Of this key, or what goes next, with its key.
  Result<Taken> take(std::optional<std::string_view> key, const Patience& patience);
  Result<StoreStats> stats(const Patience& patience);
  Result<Store::Incremented> increment(std::string_view key, int64_t delta,
                                       std::optional<int64_t> initial, const Patience& patience);
  Result<bool> touch(std::string_view key, uint64_t lasts_ns, const Patience& patience);

 private:
  struct Facts {
    std::optional<uint64_t> bytes_max;
    DiscardPolicy policy = DiscardPolicy::kLru;
    uint64_t id = 0;
  };
  RemoteStore(std::shared_ptr<PeerFile> file, IndexFile index, HoldsFile holds, uint64_t reader,
              const Facts& facts);
  std::optional<Fields> hold(std::string_view key);
  std::optional<HeldValue> held(const Fields& fields);
  Result<std::string> call(wire::CacheCall call, const std::string& arguments,
                           const Patience& patience) const;
  static Result<Outcome> outcome_of(std::string_view answer);
  Result<Outcome> put_from_file(uint8_t bits, const std::string& item, std::string_view data,
                                const Patience& patience);

  const std::shared_ptr<PeerFile> file_;
  const uint32_t generation_ = process_generation();
  const uint64_t reader_number_;  // by which the owner knows this process
  const Facts facts_;
  IndexFile index_;
  HoldsFile holds_;
  IndexReader<SharedMemory> reader_;
  std::atomic<bool> closed_{false};
  std::atomic<uint64_t> held_{1};        // values, and 1 until close()
  std::atomic<bool> value_used_{false};  // holds_.value(): for good, if an answer has not come
};

}  // namespace pgalloc::cache
