#include "cache/key_blocks.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace pgalloc::cache {

// Of eight words and less each size is a class, above that four for each power of two.
uint32_t KeyBlocks::class_of(uint64_t words) {
  if (words <= 8) return static_cast<uint32_t>(words - 1);
  const auto power = static_cast<uint32_t>(std::bit_width(words - 1)) - 1;
  const uint64_t quarter = uint64_t{1} << (power - 2);
  const auto step = static_cast<uint32_t>((words - 1 - (uint64_t{1} << power)) / quarter);
  return 8 + 4 * (power - 3) + step;
}

uint64_t KeyBlocks::size_of(uint32_t its_class) {
  if (its_class < 8) return its_class + 1;
  const uint32_t power = (its_class - 8) / 4 + 3;
  return (uint64_t{1} << power) + (uint64_t{1} << (power - 2)) * ((its_class - 8) % 4 + 1);
}

uint64_t KeyBlocks::taken_for(uint64_t words) {
  if (words <= kShortMax) return size_of(class_of(words));
  return (words + kChunkWords - 1) / kChunkWords * kChunkWords;
}

uint64_t KeyBlocks::words_to_come(uint64_t words, uint64_t count) const {
  if (words <= kShortMax) count -= std::min(count, free_blocks_[class_of(words)]);
  const uint64_t wanted = count * taken_for(words);
  const uint64_t there = (touched_ - in_use_) * kChunkWords;
  return wanted - std::min(wanted, there);
}

size_t KeyBlocks::bin_of(uint32_t run) { return static_cast<size_t>(std::bit_width(run)) - 1; }

void KeyBlocks::link(uint32_t& first, uint32_t chunk) {
  chunks_[chunk].next = first;
  chunks_[chunk].previous = kNone;
  if (first != kNone) chunks_[first].previous = chunk;
  first = chunk;
}

void KeyBlocks::unlink(uint32_t& first, uint32_t chunk) {
  const Chunk& its = chunks_[chunk];
  (its.previous == kNone ? first : chunks_[its.previous].next) = its.next;
  if (its.next != kNone) chunks_[its.next].previous = its.previous;
}

std::optional<uint64_t> KeyBlocks::take(uint64_t words) {
  if (words > kShortMax) {
    const uint64_t count = taken_for(words) / kChunkWords;
    if (count > chunk_count_) return std::nullopt;
    const auto first = take_run(static_cast<uint32_t>(count));
    if (!first) return std::nullopt;
    chunks_[*first + count - 1].its_class = kRunEnd;
    chunks_[*first].its_class = kRun;
    chunks_[*first].run = static_cast<uint32_t>(count);
    return *first * kChunkWords;
  }
  const uint32_t its_class = class_of(words);
  if (classes_[its_class] == kNone) {
    const auto chunk = take_run(1);
    if (!chunk) return std::nullopt;
    chunks_[*chunk] = {.its_class = static_cast<uint8_t>(its_class)};
    link(classes_[its_class], *chunk);
    free_blocks_[its_class] += capacity_of(its_class);
  }
  const uint32_t number = classes_[its_class];
  Chunk& chunk = chunks_[number];
  uint64_t block = chunk.fresh;
  if (chunk.freed != 0) {
    block = chunk.freed - 1u;
    chunk.freed = static_cast<uint16_t>(
        words_[number * kChunkWords + block * size_of(its_class)].load(std::memory_order_relaxed));
  } else {
    ++chunk.fresh;
  }
  --free_blocks_[its_class];
  if (++chunk.live == capacity_of(its_class)) unlink(classes_[its_class], number);
  return number * kChunkWords + block * size_of(its_class);
}

void KeyBlocks::give_back(uint64_t place, uint64_t words) noexcept {
  const auto number = static_cast<uint32_t>(place / kChunkWords);
  if (words > kShortMax) return free_run(number, chunks_[number].run);
  const uint32_t its_class = class_of(words);
  Chunk& chunk = chunks_[number];
  PGALLOC_CHECK(chunk.its_class == its_class && chunk.live > 0);
  words_[place].store(chunk.freed, std::memory_order_relaxed);
  chunk.freed = static_cast<uint16_t>(place % kChunkWords / size_of(its_class) + 1);
  ++free_blocks_[its_class];
  if (chunk.live-- == capacity_of(its_class)) link(classes_[its_class], number);
  if (chunk.live > 0) return;
  unlink(classes_[its_class], number);
  free_blocks_[its_class] -= capacity_of(its_class);
  free_run(number, 1);
}

// The first of a list that is long enough, or new ones.
std::optional<uint32_t> KeyBlocks::take_run(uint32_t count) {
  constexpr int kLooks = 16;  // in the list where some are too short
  for (size_t bin = bin_of(count); bin < bins_.size(); ++bin) {
    int looks = 0;
    for (uint32_t first = bins_[bin]; first != kNone && looks < kLooks;
         first = chunks_[first].next, ++looks) {
      const uint32_t run = chunks_[first].run;
      if (run < count) continue;
      unlink(bins_[bin], first);
      chunks_[first].its_class = chunks_[first + count - 1].its_class =
          kRun;  // so the rest stays apart
      in_use_ += run;
      if (run > count) free_run(first + count, run - count);
      return first;
    }
  }
  if (count > chunk_count_ - used_) return std::nullopt;
  const size_t wanted = size_t{used_} + count;
  if (wanted > chunks_.capacity()) chunks_.reserve(std::max(wanted, 2 * chunks_.capacity()));
  if (wanted > chunks_.size()) chunks_.resize(wanted);
  const uint32_t first = used_;
  used_ += count;
  touched_ = std::max(touched_, used_);
  in_use_ += count;
  chunks_[first].its_class = chunks_[first + count - 1].its_class = kRun;
  return first;
}

void KeyBlocks::free_run(uint32_t first, uint32_t count) noexcept {
  in_use_ -= count;
  if (first > 0 && chunks_[first - 1].its_class == kFree) {
    const uint32_t before = chunks_[first - 1].run;
    first -= before;
    count += before;
    unlink(bins_[bin_of(before)], first);
  }
  if (first + count < used_ && chunks_[first + count].its_class == kFree) {
    const uint32_t after = chunks_[first + count].run;
    unlink(bins_[bin_of(after)], first + count);
    count += after;
  }
  if (first + count == used_) {
    used_ = first;
    return;
  }
  chunks_[first].its_class = chunks_[first + count - 1].its_class = kFree;
  chunks_[first].run = chunks_[first + count - 1].run = count;
  link(bins_[bin_of(count)], first);
}

std::optional<std::string> KeyBlocks::verify() const {
  uint64_t in_use = 0;
  bool free_before = false;
  size_t free_runs = 0;
  size_t open = 0;
  for (uint32_t at = 0; at < used_;) {
    const Chunk& chunk = chunks_[at];
    uint32_t count = 1;
    if (chunk.its_class == kFree) {
      count = chunk.run;
      if (free_before) return "two free runs are neighbours";
      if (count == 0 || count > used_ - at || chunks_[at + count - 1].run != count) {
        return "a free run does not know how long it is";
      }
      if (at + count == used_) return "a free run is at the end";
      ++free_runs;
    } else if (chunk.its_class == kRun) {
      count = chunk.run;
      if (count == 0 || count > used_ - at) return "a long key reaches beyond the end";
      in_use += count;
    } else {
      if (chunk.live == 0 || chunk.live > capacity_of(chunk.its_class)) {
        return "a chunk of short keys has none, or too many";
      }
      if (chunk.live < capacity_of(chunk.its_class)) ++open;
      ++in_use;
    }
    free_before = chunk.its_class == kFree;
    at += count;
  }
  if (in_use != in_use_) return "the chunks in use are miscounted";
  for (uint32_t its_class = 0; its_class < kClasses; ++its_class) {
    for (uint32_t at = classes_[its_class]; at != kNone; at = chunks_[at].next, --open) {
      if (chunks_[at].its_class != its_class) return "a chunk is in the list of another class";
    }
  }
  if (open != 0) return "chunks with free blocks are not in their lists";
  for (size_t bin = 0; bin < bins_.size(); ++bin) {
    for (uint32_t at = bins_[bin]; at != kNone; at = chunks_[at].next, --free_runs) {
      if (chunks_[at].its_class != kFree || bin_of(chunks_[at].run) != bin) {
        return "a free run is in the list of another size";
      }
    }
  }
  return free_runs == 0 ? std::nullopt : std::optional<std::string>("a free run is in no list");
}

}  // namespace pgalloc::cache
