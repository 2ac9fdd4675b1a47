// Purpose: which pages of an extent are stored: a bit for each, with the runs of ones.
//
// Thread safety: externally synchronised.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace pgalloc::image {

class PageMap {
 public:
  static constexpr size_t kPages = 1024;
  static constexpr size_t kBytes = kPages / 8;

  void set(size_t page) { words_[page / 64] |= uint64_t{1} << (page % 64); }
  bool test(size_t page) const { return (words_[page / 64] >> (page % 64) & 1) != 0; }
  size_t count() const {
    size_t total = 0;
    for (const uint64_t word : words_) total += static_cast<size_t>(std::popcount(word));
    return total;
  }
  // The first page from `page` on whose bit is (not) set, or kPages.
  size_t next_set(size_t page) const { return next(page, 0); }
  size_t next_clear(size_t page) const { return next(page, ~uint64_t{0}); }

  // Calls visit(first page, number of pages) for every run of set bits, in ascending order.
  template <class Visit>
  void visit_runs(Visit visit) const {
    for (size_t first = next_set(0); first < kPages;) {
      const size_t end = next_clear(first);
      visit(first, end - first);
      first = next_set(end);
    }
  }

  // In memory as in an image: bit i % 8 of byte i / 8, on the little-endian machines we run on.
  static_assert(std::endian::native == std::endian::little);
  const uint64_t* data() const { return words_.data(); }
  uint64_t* data() { return words_.data(); }

  friend bool operator==(const PageMap&, const PageMap&) = default;

 private:
  size_t next(size_t page, uint64_t flip) const {
    if (page >= kPages) return kPages;
    size_t word = page / 64;
    uint64_t bits = (words_[word] ^ flip) & (~uint64_t{0} << (page % 64));
    while (bits == 0) {
      if (++word == words_.size()) return kPages;
      bits = words_[word] ^ flip;
    }
    return word * 64 + static_cast<size_t>(std::countr_zero(bits));
  }

  std::array<uint64_t, kPages / 64> words_{};
};

}  // namespace pgalloc::image
