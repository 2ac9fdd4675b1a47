// Purpose: MemoryFiles and bare files to measure with. Anything that fails ends the program.
//
// Thread safety: any thread.
#pragma once

#include <cstdint>
#include <memory>

#include "file/memory_file.h"

namespace pgalloc::benchmarks {

inline constexpr uint64_t kMiB = uint64_t{1} << 20;
inline constexpr uint64_t kGiB = uint64_t{1} << 30;

std::shared_ptr<MemoryFile> new_file();
FileRange allocate(MemoryFile& file, uint64_t length, Direction direction = Direction::kBottomUp,
                   AllocationMode mode = AllocationMode::kAllocateOnly);
void free_range(MemoryFile& file, FileRange range);
void drain(MemoryFile& file);
char* address_of(MemoryFile& file, FileRange range);
inline FileRange page_of(FileRange range, uint64_t page) {
  return {range.start + page * page_size(), range.start + (page + 1) * page_size()};
}

// A memfd and its mapping, with nothing in between: what the core is measured against.
class BareFile {
 public:
  explicit BareFile(uint64_t size);
  ~BareFile();
  BareFile(const BareFile&) = delete;
  BareFile& operator=(const BareFile&) = delete;

  char* address() const { return address_; }
  void populate();
  void commit();
  void punch(uint64_t offset, uint64_t length);

 private:
  const int fd_;
  const uint64_t size_;
  char* address_;
};

}  // namespace pgalloc::benchmarks
