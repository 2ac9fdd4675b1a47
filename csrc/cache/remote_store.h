// Purpose: another process's cache, as one that reads it has it: its index and its file, mapped. Nothing is asked of the
// owner for a value.
//
// Thread safety: any thread of the process that attached; in a forked child nothing but the end of views.
//
// Invariants
//   1. A value that was found stays as it is until let_go(), also when the owner has ended: see index_reader.h.
//   2. What the owner says is checked before it is used: values lie in the file, keys in the index.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string_view>

#include "base/process_generation.h"
#include "base/status.h"
#include "cache/holds_file.h"
#include "cache/index_file.h"
#include "cache/index_reader.h"
#include "cache/value_source.h"
#include "sharing/peer_file.h"

namespace pgalloc::cache {

class RemoteStore final : public ValueSource {
 public:
  // The cache that is served where the file is from. kSharing if there is none.
  static Result<std::shared_ptr<RemoteStore>> attach(std::shared_ptr<PeerFile> file,
                                                     const OwnerLink::Patience& patience);
  ~RemoteStore() override;
  RemoteStore(const RemoteStore&) = delete;
  RemoteStore& operator=(const RemoteStore&) = delete;

  PeerFile& file() const { return *file_; }
  // kForked, or kClosed if close() was called, or the owner has closed the cache.
  Status check_usable() const;
  std::optional<HeldValue> get(std::string_view key, bool counted);
  bool contains(std::string_view key);
  void let_go(uint64_t hold) override;
  // Values that are held stay; the owner is told when there are none any more.
  void close();

 private:
  RemoteStore(std::shared_ptr<PeerFile> file, IndexFile index, HoldsFile holds, uint64_t reader);
  std::optional<Fields> hold(std::string_view key);

  const std::shared_ptr<PeerFile> file_;
  const uint32_t generation_ = process_generation();
  const uint64_t reader_number_;  // by which the owner knows this process
  IndexFile index_;
  HoldsFile holds_;
  IndexReader<SharedMemory> reader_;
  std::atomic<bool> closed_{false};
  std::atomic<uint64_t> held_{1};  // values, and 1 until close()
};

}  // namespace pgalloc::cache
