#include "torture/stamps.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstring>

#include "torture/verdict.h"

namespace pgalloc::torture {
namespace {

constexpr int kPageNumberBits = 24;
constexpr int kSequenceBits = 32;

uint64_t stamp_word(Stamp stamp, uint64_t page_number) {
  return uint64_t{stamp.thread} << (kPageNumberBits + kSequenceBits) |
         uint64_t{stamp.sequence} << kPageNumberBits |
         (page_number & ((uint64_t{1} << kPageNumberBits) - 1));
}

// The three words of a page that bear the stamp; the middle one wanders from page to page.
template <class Visit>
void visit_words(char* page, uint64_t page_number, Visit visit) {
  const uint64_t words = page_size() / sizeof(uint64_t);
  for (const uint64_t index : {uint64_t{0}, 1 + page_number % (words - 2), words - 1}) {
    visit(reinterpret_cast<uint64_t*>(page) + index);
  }
}

template <class Visit>
void visit_pages(MemoryFile& file, FileRange range, Visit visit) {
  const Result<char*> address = file.map(range);
  if (!address.ok()) expect_ok(address.status(), "map");
  for (uint64_t offset = 0; offset < range.length(); offset += page_size()) {
    visit(*address + offset, (range.start + offset) / page_size());
  }
}

void expect_zero_page(const char* page, uint64_t number, const char* when) {
  if (page[0] == 0 && std::memcmp(page, page + 1, page_size() - 1) == 0) return;
  uint64_t first = 0;
  std::memcpy(&first, page, sizeof first);
  fail("page %" PRIu64 " is dirty %s; its first word is %#" PRIx64, number, when, first);
}

void expect_blank(const MemoryFile& file, FileRange range, const char* when) {
  alignas(uint64_t) std::array<char, 65536> buffer;
  const uint64_t step = buffer.size() / page_size() * page_size();
  for (uint64_t offset = range.start; offset < range.end; offset += step) {
    const uint64_t size = std::min(step, range.end - offset);
    const ssize_t got = ::pread(file.fd(), buffer.data(), size, static_cast<off_t>(offset));
    if (got != static_cast<ssize_t>(size)) fail("pread %s: %zd", when, got);
    for (uint64_t at = 0; at < size; at += page_size()) {
      expect_zero_page(buffer.data() + at, (offset + at) / page_size(), when);
    }
  }
}

}  // namespace

void expect_zero(MemoryFile& file, FileRange range, const char* when) {
  visit_pages(file, range,
              [&](const char* page, uint64_t number) { expect_zero_page(page, number, when); });
}

void write_stamps(MemoryFile& file, const Holding& holding) {
  visit_pages(file, holding.range, [&](char* page, uint64_t number) {
    visit_words(page, number, [&](uint64_t* word) { *word = stamp_word(*holding.stamp, number); });
  });
}

void expect_intact(MemoryFile& file, const Holding& holding, const char* when) {
  if (!holding.stamp) return expect_blank(file, holding.range, when);
  visit_pages(file, holding.range, [&](char* page, uint64_t number) {
    const uint64_t expected = stamp_word(*holding.stamp, number);
    visit_words(page, number, [&](const uint64_t* word) {
      if (*word == expected) return;
      fail("page %" PRIu64 " has lost its stamp %s: %#" PRIx64 " instead of %#" PRIx64, number,
           when, *word, expected);
    });
  });
}

}  // namespace pgalloc::torture
