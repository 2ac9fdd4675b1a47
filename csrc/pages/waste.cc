#include "pages/waste.h"

#include <algorithm>

namespace pgalloc {
namespace {

// How many ranges find() looks at.
constexpr int kCandidates = 16;

// The highest from `range` on that rests, cut to whole huge pages if `whole`.
std::optional<FileRange> last_at_rest(RangeSet::Iterator range, const PendingPages& pending,
                                      bool whole) {
  for (; range.ok(); range = range.prev()) {
    auto rest = pending.first_at_rest(range.range());
    if (rest && whole) rest = whole_huge_pages_in(*rest);
    if (rest && !rest->empty()) return rest;
  }
  return std::nullopt;
}

}  // namespace

size_t Waste::memory_bytes() const {
  return small_.memory_bytes() + whole_.memory_bytes() + partial_.memory_bytes() +
         subreleased_.memory_bytes();
}

// What add_huge() of so many parts may take, or add_subreleased(): they cannot fail half-way then.
void Waste::reserve_huge(size_t parts) {
  partial_.reserve(4 * parts);      // one insertion at each end, and each may settle
  subreleased_.reserve(3 * parts);  // one insertion, and both ends may settle
  whole_.reserve(3 * parts);        // one insertion, and both ends may settle
}

void Waste::reserve(FileRange range, size_t parts) {
  if (!areas_.has_huge()) return small_.reserve(parts);
  // Each border between areas may cut one of them.
  size_t stretches = 0;
  areas_.visit(range, [&](FileRange, PageSize) { ++stretches; });
  small_.reserve(parts + stretches);
  reserve_huge(parts + stretches);
}

void Waste::add(FileRange range) {
  if (!areas_.has_huge()) {
    small_.insert(range, {});
    return;
  }
  size_t small_parts = 0;
  size_t huge_parts = 0;
  areas_.visit(range, [&](FileRange, PageSize size) {
    ++(size == PageSize::kSmall ? small_parts : huge_parts);
  });
  small_.reserve(small_parts);
  if (huge_parts > 0) reserve_huge(huge_parts);
  areas_.visit(range, [this](FileRange part, PageSize size) {
    if (size == PageSize::kSmall) {
      small_.insert(part, {});
    } else {
      add_huge(part);
    }
  });
}

void Waste::add_huge(FileRange range) {
  const FileRange inside = whole_huge_pages_in(range);
  if (inside.empty()) {
    partial_.insert(range, {});
    settle(align_down(range.start, huge_page_size()));
    settle(align_down(range.end - 1, huge_page_size()));
    return;
  }
  whole_.insert(inside, {});
  if (range.start < inside.start) {
    partial_.insert({range.start, inside.start}, {});
    settle(inside.start - huge_page_size());
  }
  if (inside.end < range.end) {
    partial_.insert({inside.end, range.end}, {});
    settle(inside.end);
  }
}

// If all of it is here by now, it is whole. REQUIRES: reserve_huge().
void Waste::settle(uint64_t huge_page) {
  const FileRange page{huge_page, huge_page + huge_page_size()};
  if (partial_.span_of(page) + subreleased_.span_of(page) < page.length()) return;
  partial_.remove_range(page);
  subreleased_.remove_range(page);
  if (whole_.span_of(page) == 0) whole_.insert(page, {});
}

std::optional<FileRange> Waste::next(const PendingPages& pending) const {
  if (const auto range = last_at_rest(small_.last(), pending, /*whole=*/false)) return range;
  return last_at_rest(whole_.last(), pending, /*whole=*/true);
}

std::optional<FileRange> Waste::next_part(const PendingPages& pending, uint64_t below) const {
  if (below == 0) return std::nullopt;
  return last_at_rest(partial_.upper_bound_segment(below - 1), pending, /*whole=*/false);
}

std::optional<FileRange> Waste::find(uint64_t length, uint64_t alignment, bool from_below,
                                     PageSize size, const PendingPages& pending) const {
  const RangeSet& set = size == PageSize::kSmall ? small_ : whole_;
  auto waste = from_below ? set.first() : set.last();
  for (int i = 0; i < kCandidates && waste.ok(); ++i) {
    const FileRange range = waste.range();
    waste = from_below ? waste.next() : waste.prev();
    if (range.length() < length) continue;
    const uint64_t start =
        from_below ? align_up(range.start, alignment) : align_down(range.end - length, alignment);
    if (start < range.start || start > range.end - length) continue;
    const FileRange place{start, start + length};
    if (!pending.find(place, Arrival::kArriving)) return place;
  }
  return std::nullopt;
}

void Waste::remove(FileRange range) {
  small_.remove_range(range);
  if (whole_.empty() && partial_.empty()) return;
  whole_.remove_range(range);
  partial_.remove_range(range);
}

bool Waste::is_partial(FileRange range) const {
  return areas_.at(range.start) == PageSize::kHuge && whole_huge_pages_in(range) != range;
}

void Waste::add_subreleased(FileRange range) {
  reserve_huge(1);
  subreleased_.insert(range, {});
  settle(align_down(range.start, huge_page_size()));
  settle(align_down(range.end - 1, huge_page_size()));
}

void Waste::clear() {
  small_.clear();
  whole_.clear();
  partial_.clear();
  subreleased_.clear();
}

std::optional<std::string> Waste::verify() const {
  for (const RangeSet* set : {&small_, &whole_, &partial_, &subreleased_}) {
    if (auto broken = set->verify()) return broken;
  }
  for (auto range = small_.first(); range.ok(); range = range.next()) {
    if (!areas_.are_all(range.range(), PageSize::kSmall)) return "small waste in a huge area";
  }
  for (auto range = whole_.first(); range.ok(); range = range.next()) {
    if (!areas_.are_all(range.range(), PageSize::kHuge)) return "whole waste in a small area";
    if (whole_huge_pages_in(range.range()) != range.range()) return "whole waste is not whole";
    if (bytes_in(range.range()) + subreleased_.span_of(range.range()) != range.range().length()) {
      return "waste is in two states";
    }
  }
  for (const RangeSet* set : {&partial_, &subreleased_}) {
    for (auto range = set->first(); range.ok(); range = range.next()) {
      if (!areas_.are_all(range.range(), PageSize::kHuge))
        return "a part of a huge page in a small area";
      for (uint64_t start = align_down(range.range().start, huge_page_size());
           start < range.range().end; start += huge_page_size()) {
        const FileRange page{start, start + huge_page_size()};
        const uint64_t parts = partial_.span_of(page) + subreleased_.span_of(page);
        if (parts >= page.length()) return "a huge page of which nothing is used waits for more";
      }
    }
  }
  return std::nullopt;
}

}  // namespace pgalloc
