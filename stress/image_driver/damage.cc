#include <algorithm>

#include "image_driver/edits.h"

namespace pgalloc::image_driver {
namespace {

using torture::Random;

// A byte of any part: parts are chosen before bytes, so that the data do not get nearly all of it.
uint64_t pick_byte(const Image& image, Random& random) {
  uint64_t first = random.below(image.bytes.size() / page_size()) * page_size();
  switch (random.below(6)) {
    case 0:
      first = 0;
      break;
    case 1:
      first = page_size();
      break;
    case 2:
      if (!image.heads.empty()) first = image.heads[random.below(image.heads.size())];
      break;
    case 3:
      first = image.index;
      break;
    case 4:
      first = image.trailer;
      break;
    default:
      break;
  }
  return first + random.below(random.one_in(2) ? 64 : page_size());
}

// A multiple of the page size, now and then one off it.
uint64_t pick_length(Random& random, uint64_t size) {
  uint64_t length = random.below(size);
  if (random.one_in(2)) length = align_down(length, page_size());
  return random.one_in(4) && length > 0 ? length - 1 : length;
}

void swap_pages(const Image& image, Random& random, std::string* bytes) {
  const uint64_t pages = image.bytes.size() / page_size();
  const uint64_t one = random.below(pages);
  const uint64_t other = (one + 1 + random.below(pages - 1)) % pages;
  const auto page = [&](uint64_t number) { return bytes->begin() + number * page_size(); };
  std::swap_ranges(page(one), page(one + 1), page(other));
}

}  // namespace

const char* damage(const Image& image, Random& random, std::string* bytes) {
  const uint64_t at = pick_byte(image, random);
  switch (random.below(10)) {
    case 0:
      (*bytes)[at] = static_cast<char>(random.next());
      return "a byte set";
    case 1: {
      const uint64_t length = std::min(1 + random.below(page_size()), bytes->size() - at);
      std::fill_n(bytes->begin() + at, length, random.one_in(2) ? '\0' : '\xFF');
      return "a stretch filled";
    }
    case 2:
      bytes->resize(pick_length(random, bytes->size()));
      return "cut off";
    case 3:
      swap_pages(image, random, bytes);
      return "pages swapped";
    case 4:
      bytes->erase(at - at % page_size(), page_size());
      return "a page lost";
    case 5:
      bytes->insert(at - at % page_size(), page_size(), '\0');
      return "a page of zeros put in";
    default:
      (*bytes)[at] ^= static_cast<char>(1 << random.below(8));
      return "a bit flipped";
  }
}

}  // namespace pgalloc::image_driver
