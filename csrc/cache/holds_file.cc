#include "cache/holds_file.h"

#include <algorithm>
#include <utility>

#include "base/units.h"

namespace pgalloc::cache {
namespace {

using Word = Holds<SharedMemory>::Word;

uint64_t bytes_for(uint64_t holder_count) {
  return page_size() + align_up(holder_count * sizeof(Word), page_size()) + HoldsFile::kValueBytes;
}

}  // namespace

Result<HoldsFile> HoldsFile::create(uint64_t holder_count) {
  auto file = SharedFile::create_for_writing(bytes_for(holder_count));
  if (!file.ok()) return std::move(file).status();
  return HoldsFile(std::move(*file), holder_count);
}

Result<HoldsFile> HoldsFile::map(os::Descriptor file, uint64_t holder_count) {
  auto mapped = SharedFile::map_for_writing(std::move(file), bytes_for(holder_count));
  if (!mapped.ok()) return std::move(mapped).status();
  return HoldsFile(std::move(*mapped), holder_count);
}

Word* HoldsFile::words() const { return reinterpret_cast<Word*>(file_.data() + page_size()); }

char* HoldsFile::value() const { return file_.data() + file_.size() - kValueBytes; }

Holds<SharedMemory> HoldsFile::holds() const { return {words(), holder_count_}; }

void HoldsFile::copy_from(const HoldsFile& other, uint64_t holder_count) {
  for (uint64_t i = 0; i < std::min(holder_count, holder_count_); ++i) {
    const uint64_t word = other.words()[i].load(std::memory_order_relaxed);
    if (word != 0) words()[i].store(word, std::memory_order_relaxed);
  }
}

}  // namespace pgalloc::cache
