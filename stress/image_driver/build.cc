#include "image_driver/build.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/crc32c.h"
#include "image/encode.h"

namespace pgalloc::image_driver {
namespace {

using torture::Random;

// Mostly small, sometimes up to `max`.
uint64_t size_up_to(Random& random, uint64_t max) {
  const uint64_t usual = random.one_in(20) ? max : std::min<uint64_t>(max, 12);
  return random.below(usual + 1);
}

std::string random_bytes(Random& random, size_t size) {
  std::string bytes(size, '\0');
  for (size_t i = 0; i < size; i += sizeof(uint64_t)) {
    const uint64_t word = random.next();
    std::memcpy(bytes.data() + i, &word, std::min(sizeof word, size - i));
  }
  return bytes;
}

void append_utf8(uint32_t character, std::string* text) {
  const auto put = [&](uint32_t byte) { text->push_back(static_cast<char>(byte)); };
  const auto put_rest = [&](uint32_t shift) { put(0x80 | (character >> shift & 0x3F)); };
  if (character < 0x80) return put(character);
  if (character < 0x800) {
    put(0xC0 | character >> 6);
  } else {
    if (character < 0x10000) {
      put(0xE0 | character >> 12);
    } else {
      put(0xF0 | character >> 18);
      put_rest(12);
    }
    put_rest(6);
  }
  put_rest(0);
}

std::string random_text(Random& random, uint64_t characters) {
  // The first and last characters of each form, and the neighbours of the surrogates.
  constexpr uint32_t kBorders[] = {0,      0x7F,   0x80,   0x7FF,   0x800,
                                   0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF};
  std::string text;
  for (uint64_t i = 0; i < characters; ++i) {
    append_utf8(random.one_in(4) ? kBorders[random.below(std::size(kBorders))]
                                 : static_cast<uint32_t>('a' + random.below(26)),
                &text);
  }
  return text;
}

std::vector<image::Usage> random_usage(Random& random, uint64_t file_pages) {
  std::vector<image::Usage> usage;
  const uint64_t goal = size_up_to(random, 300);
  uint64_t page = 0;
  while (usage.size() < goal) {
    if (random.one_in(2)) page += size_up_to(random, file_pages - page);
    if (page == file_pages) break;
    const uint64_t pages = std::min(file_pages - page, 1 + size_up_to(random, file_pages));
    usage.push_back({{page * page_size(), (page + pages) * page_size()},
                     random.one_in(2) ? 1 : static_cast<uint32_t>(1 + random.below(UINT32_MAX)),
                     static_cast<uint32_t>(random.below(3)),
                     static_cast<MemoryKind>(random.below(5)),
                     random.one_in(2)});
    page += pages;
  }
  return usage;
}

std::vector<image::Hook> random_hooks(Random& random) {
  std::vector<image::Hook> hooks(random.one_in(3) ? 0 : size_up_to(random, 100));
  for (size_t i = 0; i < hooks.size(); ++i) {
    hooks[i].name = std::to_string(i) + "_" + random_text(random, size_up_to(random, 60));
    hooks[i].payload = random_bytes(random, size_up_to(random, 6000));
  }
  return hooks;
}

bool is_used(const std::vector<image::Usage>& usage, uint64_t offset) {
  return std::any_of(usage.begin(), usage.end(),
                     [&](const image::Usage& u) { return u.range.contains(offset); });
}

// The first used page from `offset` on, or the end of the file.
uint64_t next_used(const Contents& contents, uint64_t offset) {
  for (const image::Usage& usage : contents.metadata.usage) {
    if (usage.range.end > offset) return std::max(offset, usage.range.start);
  }
  return contents.file_size;
}

// A stretch from `offset` on with some used page; an empty one if there is none.
FileRange random_stretch(Random& random, const Contents& contents, uint64_t offset) {
  if (random.one_in(3)) {
    offset += size_up_to(random, (contents.file_size - offset) / page_size()) * page_size();
  }
  const uint64_t used = next_used(contents, offset);
  if (used == contents.file_size) return {};
  const uint64_t cell = align_down(used, image::kExtentSpan);
  const uint64_t lead = size_up_to(random, (used - std::max(cell, offset)) / page_size());
  const uint64_t end_max = std::min(contents.file_size, cell + image::kExtentSpan);
  const uint64_t tail = size_up_to(random, (end_max - used) / page_size() - 1);
  return {used - lead * page_size(), used + (1 + tail) * page_size()};
}

image::ExtentHead random_head(Random& random, const Contents& contents, FileRange range,
                              uint64_t offset) {
  image::ExtentHead head;
  head.range = range;
  head.offset = offset;
  const uint64_t sparseness = 1 + random.below(3);
  const uint64_t used = next_used(contents, range.start);
  for (uint64_t at = used; at < range.end; at += page_size()) {
    if (at != used && !random.one_in(sparseness)) continue;
    if (is_used(contents.metadata.usage, at)) head.map.set((at - range.start) / page_size());
  }
  head.stored_length = head.raw_length();
  if (random.one_in(3)) {
    head.encoding = image::Encoding::kZstd;
    head.stored_length = 1 + random.below(head.raw_length() - 1);
  }
  return head;
}

// Appends head and data to the image. The data are no zstd frame whatever the head says: decoding
// an image does not look into frames.
image::ExtentHead append_extent(Random& random, FileRange range, Image* image) {
  image::ExtentHead head = random_head(random, image->contents, range, image->bytes.size());
  std::string data = random_bytes(random, head.stored_length);
  data.resize(head.stored_bytes());
  head.data_crc = crc32c(data.data(), data.size());
  std::string page(page_size(), '\xFF');
  image::encode_extent_head(&head, page.data());
  image->heads.push_back(head.offset);
  image->bytes += page + data;

  Extent extent{range, static_cast<uint32_t>(head.encoding), {}, {}};
  for (size_t i = 0; i < image::PageMap::kPages; ++i) {
    if (head.map.test(i)) extent.stored_pages.push_back(i);
  }
  image->contents.extents.push_back(extent);
  return head;
}

void note_hooks(const image::Header& header, Image* image) {
  uint64_t at = page_size() + header.metadata_length;
  const auto& hooks = image->contents.metadata.hooks;
  image->hooks.resize(hooks.size());
  for (size_t i = hooks.size(); i-- > 0;) {
    at -= 12 + hooks[i].name.size() + hooks[i].payload.size();
    image->hooks[i] = at;
  }
}

Image finish(Random& random, Contents contents, uint64_t extents_max) {
  Image image;
  image.contents = std::move(contents);
  image::Header header;
  image.bytes = image::encode_front(image.contents.file_size, image.contents.metadata, &header);
  note_hooks(header, &image);

  std::vector<image::IndexEntry> entries;
  uint64_t stored_pages = 0;
  for (uint64_t reached = 0; entries.size() < extents_max;) {
    const FileRange range = random_stretch(random, image.contents, reached);
    if (range.empty()) break;
    const image::ExtentHead head = append_extent(random, range, &image);
    entries.push_back(image::index_entry(head));
    stored_pages += head.map.count();
    reached = range.end;
  }
  // The bytes stay where they are from here on, but for what is appended now.
  image.index = image.bytes.size();
  image.contents.zero_pages_skipped =
      size_up_to(random, image.contents.file_size / page_size() - stored_pages);
  image.bytes +=
      image::encode_back(header, entries, image.index, image.contents.zero_pages_skipped);
  image.trailer = image.bytes.size() - page_size();
  for (size_t i = 0; i < entries.size(); ++i) {
    image.contents.extents[i].data =
        std::string_view(image.bytes)
            .substr(image.heads[i] + page_size(), entries[i].stored_length);
  }
  return image;
}

}  // namespace

Image build_image(Random& random) {
  Contents contents;
  const uint64_t file_pages_max[] = {64, 5000, kMaxOffset / page_size()};
  const uint64_t file_pages = random.below(file_pages_max[random.below(3)] + 1);
  contents.file_size = file_pages * page_size();
  contents.metadata.usage = random_usage(random, file_pages);
  contents.metadata.restore_id = random_text(random, size_up_to(random, 4000));
  contents.metadata.hooks = random_hooks(random);
  return finish(random, std::move(contents), random.one_in(30) ? 200 : random.below(8));
}

Image build_small_image(Random& random) {
  Contents contents;
  contents.file_size = 2 * page_size();
  contents.metadata.usage = {{{0, page_size()}, 1, 0, MemoryKind::kTmpfs, true}};
  contents.metadata.restore_id = "small";
  contents.metadata.hooks = {{"hook", "payload"}};
  return finish(random, std::move(contents), 1);
}

}  // namespace pgalloc::image_driver
