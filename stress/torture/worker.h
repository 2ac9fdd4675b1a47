// Purpose: one thread's share of the torture: it allocates, stamps, checks, shares, decommits,
// passes on and frees at random, and believes nothing.
//
// Thread safety: one thread at a time; the mailboxes, the shelf and the file are shared.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "file/memory_file.h"
#include "torture/mailbox.h"
#include "torture/random.h"
#include "torture/shelf.h"
#include "torture/source.h"
#include "torture/stamps.h"

namespace pgalloc::torture {

struct Counts {
  uint64_t operations = 0;
  uint64_t allocations = 0;
  uint64_t refusals = 0;  // out of memory: the limit is part of the test
  uint64_t pages_stamped = 0;
  uint64_t pages_left_blank = 0;
  uint64_t pages_checked = 0;
  uint64_t shared = 0;
  uint64_t passed_on = 0;
  uint64_t decommits = 0;
  uint64_t shelved = 0;

  void add(const Counts& other);
};

// What all workers of a run have in common.
struct Arena {
  MemoryFile& file;
  Source& source;
  Shelf& shelf;
  std::vector<Mailbox>& mailboxes;  // one for each worker
  uint64_t bytes_per_worker;
};

class Worker {
 public:
  Worker(const Arena& arena, uint8_t number, uint64_t seed)
      : arena_(arena), number_(number), random_(seed) {}

  // Works until the time or the operations are used up.
  void run(std::chrono::steady_clock::time_point until, uint64_t operations);
  // Checks and frees everything it has.
  void free_all();

  const std::vector<Holding>& pool() const { return pool_; }
  const Counts& counts() const { return counts_; }

 private:
  void step();
  void allocate();
  void check(const Holding& holding, const char* when);
  void share(const Holding& holding);
  void decommit(Holding& holding);
  void stamp_blank(Holding& holding);
  void pass_on(size_t index);
  void put_on_shelf(size_t index);
  void free(size_t index);
  void receive();

  bool sole_owner(FileRange range) const;
  void stamp(const Holding& holding);
  void keep(const Holding& holding);
  Holding remove(size_t index);
  FileRange random_part(FileRange range);
  uint64_t random_length();

  Arena arena_;
  const uint8_t number_;
  Random random_;
  uint32_t sequence_ = 0;
  uint64_t pool_bytes_ = 0;
  std::vector<Holding> pool_;
  Counts counts_;
};

}  // namespace pgalloc::torture
