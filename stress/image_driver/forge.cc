#include <algorithm>
#include <bit>

#include "image_driver/edits.h"
#include "image_driver/raw.h"

// The format by its offsets, as in the oracle.
namespace pgalloc::image_driver {
namespace {

using torture::Random;

struct Field {
  uint64_t offset;  // within its part
  size_t size;
};
constexpr Field kHeaderFields[] = {{0, 1},  {8, 4},  {12, 4}, {20, 4},
                                   {24, 8}, {32, 8}, {40, 4}, {48, 8}};
constexpr Field kUsageFields[] = {{0, 8}, {8, 8}, {16, 4}, {20, 4}, {24, 1}, {25, 1}, {26, 1}};
constexpr Field kHookFields[] = {{0, 4}, {4, 8}};
constexpr Field kHeadFields[] = {{0, 1}, {8, 8}, {16, 4}, {20, 4}, {24, 4}, {32, 8}, {40, 8}};
constexpr Field kEntryFields[] = {{0, 8}, {8, 8}, {16, 8}, {24, 4}, {28, 4}, {32, 4}};
constexpr Field kIndexFields[] = {{0, 1}, {4, 4}, {8, 8}};
constexpr Field kTrailerFields[] = {{0, 1}, {8, 8}, {16, 8}, {24, 8}, {32, 8}, {40, 8}};
constexpr uint64_t kUsageSize = 32;
constexpr uint64_t kEntrySize = 40;

class Forger {
 public:
  Forger(const Image& image, Random& random, std::string* bytes)
      : image_(image), random_(random), bytes_(*bytes) {}

  const char* run() {
    const char* what = change();
    if (random_.one_in(4)) what = change();
    if (!random_.one_in(4)) agree();
    // Sometimes not all of them, as if one was forgotten.
    seal(random_.one_in(10) ? random_.below(5) : 5);
    return what;
  }

 private:
  const char* change() {
    switch (random_.below(12)) {
      case 0:
        change_field(0, kHeaderFields);
        return "a field of the header";
      case 1:
        if (usage_count() > 0) change_field(pick_usage(), kUsageFields);
        return "a field of the usage set";
      case 2:
        if (usage_count() > 0) swap(pick_usage(), pick_usage(), kUsageSize);
        return "two entries of the usage set swapped";
      case 3:
        return change_hooks();
      case 4:
        change_byte(page_size(), image_.heads.empty() ? image_.index : image_.heads[0]);
        return "a byte of the metadata";
      case 5:
        if (extents() > 0) change_field(image_.heads[random_.below(extents())], kHeadFields);
        return "a field of a head";
      case 6:
        if (extents() > 0) change_map(image_.heads[random_.below(extents())] + 64);
        return "a bit of a page map";
      case 7:
        if (extents() > 0) change_field(pick_entry(), kEntryFields);
        return "a field of the index";
      case 8:
        if (extents() > 0) swap(pick_entry(), pick_entry(), kEntrySize);
        return "two entries of the index swapped";
      case 9:
        change_field(image_.index, kIndexFields);
        return "the beginning of the index";
      case 10:
        change_field(image_.trailer, kTrailerFields);
        return "a field of the trailer";
      default:
        change_byte(0, bytes_.size());
        return "any byte";
    }
  }

  const char* change_hooks() {
    const auto& hooks = image_.contents.metadata.hooks;
    if (hooks.empty()) return "no hook to change";
    const size_t i = random_.below(hooks.size());
    const size_t j = random_.below(hooks.size());
    switch (random_.below(3)) {
      case 0:
        change_field(image_.hooks[i], kHookFields);
        return "a length of a hook";
      case 1:
        if (hooks[i].name.size() == hooks[j].name.size()) {
          bytes_.replace(image_.hooks[i] + 12, hooks[j].name.size(), hooks[j].name);
        }
        return "a hook's name taken twice";
      default: {
        // The last payload takes some of the padding.
        const uint64_t more = random_.below(40);
        set(&bytes_, image_.hooks.back() + 4, 8, number(bytes_, image_.hooks.back() + 4, 8) + more);
        set(&bytes_, 48, 8, number(bytes_, 48, 8) + more);
        return "a longer hook";
      }
    }
  }

  template <size_t kFields>
  void change_field(uint64_t part, const Field (&fields)[kFields]) {
    const Field field = fields[random_.below(kFields)];
    const uint64_t at = part + field.offset;
    set(&bytes_, at, field.size, other_value(number(bytes_, at, field.size)));
  }
  // Next to the old value, at a border of something, or anything.
  uint64_t other_value(uint64_t value) {
    const uint64_t steps[] = {1, page_size(), 2 * page_size(), uint64_t{4} << 20};
    const uint64_t step = steps[random_.below(std::size(steps))];
    switch (random_.below(7)) {
      case 0:
        return value + step;
      case 1:
        return value - step;
      case 2:
        return uint64_t{1} << random_.below(64);
      case 3:
        return UINT64_MAX - random_.below(2) * (page_size() - 1);
      case 4:
        return random_.below(8);
      case 5:
        return value ^ uint64_t{1} << random_.below(64);
      default:
        return random_.next() >> random_.below(64);
    }
  }
  void change_byte(uint64_t begin, uint64_t end) {
    if (begin == end) return;  // an image without metadata
    bytes_[begin + random_.below(end - begin)] = static_cast<char>(random_.next());
  }
  void change_map(uint64_t map) {
    const uint64_t page = random_.below(random_.one_in(4) ? 1024 : 16);
    bytes_[map + page / 8] ^= static_cast<char>(1 << page % 8);
  }
  void swap(uint64_t one, uint64_t other, uint64_t size) {
    if (one == other) return;
    std::swap_ranges(bytes_.begin() + one, bytes_.begin() + one + size, bytes_.begin() + other);
  }

  // Counts of pages fit the maps, the index fits the heads, and the trailer the index.
  void agree() {
    uint64_t stored_pages = 0;
    for (size_t i = 0; i < extents(); ++i) {
      const uint64_t head = image_.heads[i];
      const uint64_t entry = entry_at(i);
      uint64_t stored = 0;
      for (uint64_t word = 0; word < 16; ++word) {
        stored += std::popcount(number(bytes_, head + 64 + 8 * word, 8));
      }
      if (!random_.one_in(10)) set(&bytes_, head + 20, 4, stored);
      bytes_.replace(entry, 8, bytes_, head + 8, 8);
      bytes_.replace(entry + 8, 8, bytes_, head + 40, 8);
      bytes_.replace(entry + 16, 8, bytes_, head + 32, 8);
      bytes_.replace(entry + 24, 12, bytes_, head + 16, 12);
      stored_pages += number(bytes_, head + 20, 4);
    }
    set(&bytes_, image_.trailer + 32, 8, stored_pages);
    if (random_.one_in(2)) bytes_.replace(image_.index + 8, 8, bytes_, image_.trailer + 16, 8);
  }

  // From the inside out, `parts` of five.
  void seal(uint64_t parts) {
    for (size_t i = 0; i < extents(); ++i) {
      const uint64_t head = image_.heads[i];
      const uint64_t end = i + 1 < extents() ? image_.heads[i + 1] : image_.index;
      if (parts > 0) set(&bytes_, head + 28, 4, crc_of(bytes_, head + page_size(), end));
      if (parts > 1) seal_page(&bytes_, head, 4);
      if (parts > 1) bytes_.replace(entry_at(i) + 36, 4, bytes_, head + 4, 4);
    }
    if (parts > 2) set(&bytes_, 44, 4, crc_of(bytes_, page_size(), metadata_end()));
    if (parts > 3) seal_page(&bytes_, 0, 16);
    if (parts > 3)
      set(&bytes_, image_.trailer + 48, 4, crc_of(bytes_, image_.index, image_.trailer));
    if (parts > 4) set(&bytes_, image_.trailer + 52, 4, number(bytes_, 16, 4));
    if (parts > 4) seal_page(&bytes_, image_.trailer, 56);
  }
  // As the header now says, if that is possible.
  uint64_t metadata_end() const {
    const uint64_t length = std::min<uint64_t>(number(bytes_, 48, 8), bytes_.size() - page_size());
    return page_size() + align_up(length, page_size());
  }

  uint64_t usage_count() const { return image_.contents.metadata.usage.size(); }
  uint64_t pick_usage() { return page_size() + random_.below(usage_count()) * kUsageSize; }
  uint64_t extents() const { return image_.heads.size(); }
  uint64_t entry_at(size_t i) const { return image_.index + 16 + i * kEntrySize; }
  uint64_t pick_entry() { return entry_at(random_.below(extents())); }

  const Image& image_;
  Random& random_;
  std::string& bytes_;
};

}  // namespace

const char* forge(const Image& image, Random& random, std::string* bytes) {
  return Forger(image, random, bytes).run();
}

}  // namespace pgalloc::image_driver
