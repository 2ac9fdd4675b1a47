// Purpose: the file that an index lies in: a page that says what it is, the buckets of all tables it may grow to, the
// entries, the keys. Untouched parts take no memory, so it is made for as many values as there may ever be.
//
// Thread safety: as the index.
//
// Invariant: what it says of itself is checked when it is mapped, and not looked at again.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "cache/hash.h"
#include "cache/index_layout.h"
#include "cache/key_arena.h"
#include "cache/shared_file.h"
#include "cache/shared_memory.h"

namespace pgalloc::cache {

class IndexFile {
 public:
  // For up to so many values, or fewer where that is too long for a file; it is writable here only.
  static Result<IndexFile> create(uint64_t entries_max);
  // One that another process made. kSharing if it is none.
  static Result<IndexFile> map(os::Descriptor file);

  const Index<SharedMemory>& index() const { return index_; }
  // For the process that made it to change, for others to read.
  KeyArena& keys() { return keys_; }
  const KeyArena& keys() const { return keys_; }
  const HashSecret& secret() const { return secret_; }
  const SharedFile& file() const { return file_; }
  // How many entries were ever used: those behind them are not.
  void set_entries_used(uint64_t count);
  uint64_t entries_used() const;
  // Nothing more comes: for others to know.
  void close();
  bool closed() const;
  void close_descriptor() { file_.close_descriptor(); }
  // It is not looked at any more.
  void release() { file_ = SharedFile(); }
  void forget_in_child() { file_.forget_in_child(); }

 private:
  struct Sizes;
  IndexFile(SharedFile file, const Sizes& sizes);
  static Sizes sizes_for(uint64_t entries_max, uint64_t key_bytes_min);

  SharedFile file_;
  Index<SharedMemory> index_;
  KeyArena keys_;
  HashSecret secret_;
};

}  // namespace pgalloc::cache
