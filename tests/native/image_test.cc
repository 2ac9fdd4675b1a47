// The bytes of docs/image-format.md: an image made by hand is what the encoder makes, and what the
// decoders accept; with one bit flipped they refuse it.

#include <cstring>
#include <string>

#include "base/crc32c.h"
#include "image/decode.h"
#include "image/encode.h"
#include "image/utf8.h"
#include "native/support.h"

namespace pgalloc::image_test {
namespace {

using image::Bytes;
using image::PageMap;
using native_tests::pages;

// --- A minimal image: a file of four pages, two of them used, one of those stored ----------------

template <class Value>
void put(std::string& bytes, size_t at, Value value) {
  std::memcpy(bytes.data() + at, &value, sizeof value);
}
void put(std::string& bytes, size_t at, const char* text, size_t size) {
  std::memcpy(bytes.data() + at, text, size);
}
uint32_t crc_of(const std::string& bytes) { return crc32c(bytes.data(), bytes.size()); }

struct Parts {
  std::string header = std::string(page_size(), '\0');
  std::string metadata = std::string(page_size(), '\0');
  std::string head = std::string(page_size(), '\0');
  std::string data = std::string(page_size(), 'd');
  std::string index = std::string(page_size(), '\0');
  std::string trailer = std::string(page_size(), '\0');

  std::string* all() { return &header; }
  static constexpr size_t kCount = 6;
};

Parts minimal() {
  const uint64_t page = page_size();
  Parts parts;
  put(parts.metadata, 0, uint64_t{page});
  put(parts.metadata, 8, uint64_t{3 * page});
  put(parts.metadata, 16, uint32_t{2});  // references
  put(parts.metadata, 20, uint32_t{5});  // memory cgroup
  put(parts.metadata, 24, uint8_t{3});   // TMPFS
  put(parts.metadata, 25, uint8_t{1});   // committed
  put(parts.metadata, 32, "id", 2);
  put(parts.metadata, 34, uint32_t{1});
  put(parts.metadata, 38, uint64_t{4});
  put(parts.metadata, 46, "hload", 5);  // hook h with payload

  put(parts.header, 0, "\x89PGALOC\n", 8);
  put(parts.header, 8, uint32_t{1});  // version
  put(parts.header, 12, static_cast<uint32_t>(page));
  put(parts.header, 20, uint32_t{2});  // length of the restore_id
  put(parts.header, 24, uint64_t{4 * page});
  put(parts.header, 32, uint64_t{1});  // ranges in use
  put(parts.header, 40, uint32_t{1});  // hooks
  put(parts.header, 44, crc_of(parts.metadata));
  put(parts.header, 48, uint64_t{51});  // length of the metadata
  const uint32_t header_crc = crc_of(parts.header);
  put(parts.header, 16, header_crc);

  put(parts.head, 0, "XTNT", 4);
  put(parts.head, 8, uint64_t{page});
  put(parts.head, 16, uint32_t{2});  // pages
  put(parts.head, 20, uint32_t{1});  // stored
  put(parts.head, 28, crc_of(parts.data));
  put(parts.head, 32, uint64_t{page});
  put(parts.head, 40, uint64_t{2 * page});
  put(parts.head, 64, uint8_t{0b10});  // the second page
  const uint32_t head_crc = crc_of(parts.head);
  put(parts.head, 4, head_crc);

  put(parts.index, 0, "INDX", 4);
  put(parts.index, 8, uint64_t{1});
  put(parts.index, 16, uint64_t{page});
  put(parts.index, 24, uint64_t{2 * page});
  put(parts.index, 32, uint64_t{page});
  put(parts.index, 40, uint32_t{2});
  put(parts.index, 44, uint32_t{1});
  put(parts.index, 52, head_crc);

  put(parts.trailer, 0, "\x89PGAEND\n", 8);
  put(parts.trailer, 8, uint64_t{4 * page});
  put(parts.trailer, 16, uint64_t{1});
  put(parts.trailer, 24, uint64_t{6 * page});
  put(parts.trailer, 32, uint64_t{1});
  put(parts.trailer, 40, uint64_t{1});  // a page of zeros was left out
  put(parts.trailer, 48, crc_of(parts.index));
  put(parts.trailer, 52, header_crc);
  put(parts.trailer, 56, crc_of(parts.trailer));
  return parts;
}

image::Metadata metadata_of_minimal() {
  return {{{pages(1, 3), 2, 5, MemoryKind::kTmpfs, true}}, "id", {{"h", "load"}}};
}

// What a reader does.
Status read(const Parts& parts) {
  const auto header = image::decode_header(parts.header);
  if (!header.ok()) return header.status().clone();
  const auto metadata = image::decode_metadata(*header, parts.metadata);
  if (!metadata.ok()) return metadata.status().clone();
  const auto trailer = image::decode_trailer(*header, parts.trailer, 6 * page_size());
  if (!trailer.ok()) return trailer.status().clone();
  const auto index = image::decode_index(*header, *trailer, parts.index);
  if (!index.ok()) return index.status().clone();
  const auto head = image::decode_extent_head(*header, parts.head, 2 * page_size());
  if (!head.ok()) return head.status().clone();
  PGALLOC_RETURN_IF_ERROR(image::check_same(index->front(), *head));
  PGALLOC_RETURN_IF_ERROR(image::check_extent_usage(*head, metadata->usage));
  return image::check_extent_data(*head, parts.data);
}

TEST(a_minimal_image_made_by_hand_is_accepted) {
  const Parts parts = minimal();
  EXPECT(read(parts).ok());
  const auto header = image::decode_header(parts.header);
  EXPECT_EQ(header->file_size, 4 * page_size());
  EXPECT_EQ(header->first_extent(), 2 * page_size());
  EXPECT(*image::decode_metadata(*header, parts.metadata) == metadata_of_minimal());
  EXPECT(image::begins_index(parts.index) && !image::begins_index(parts.head));
  EXPECT_EQ(image::peek_extent_count(parts.index), 1u);
}

TEST(the_encoder_makes_the_same_bytes) {
  const Parts parts = minimal();
  image::Header header;
  EXPECT(image::encode_front(4 * page_size(), metadata_of_minimal(), &header) ==
         parts.header + parts.metadata);
  image::ExtentHead head{.range = pages(1, 3),
                         .offset = 2 * page_size(),
                         .stored_length = page_size(),
                         .data_crc = crc_of(parts.data)};
  head.map.set(1);
  std::string page(page_size(), 'x');
  image::encode_extent_head(&head, page.data());
  EXPECT(page == parts.head);
  const image::IndexEntry entries[] = {image::index_entry(head)};
  EXPECT(image::encode_back(header, entries, 4 * page_size(), 1) == parts.index + parts.trailer);
}

TEST(a_flipped_bit_is_refused) {
  const Parts image = minimal();
  for (size_t part = 0; part < Parts::kCount; ++part) {
    Parts flipped = image;
    std::string& bytes = flipped.all()[part];
    // Every bit of what has a meaning, and one in 61 of the rest.
    for (size_t bit = 0; bit < 8 * bytes.size(); bit += bit < 8 * 256 ? 1 : 61) {
      bytes[bit / 8] ^= static_cast<char>(1 << bit % 8);
      const Status status = read(flipped);
      const bool refused = !status.ok() && (status.code() == ErrorCode::kSnapshotCorrupt ||
                                            status.code() == ErrorCode::kSnapshotVersion);
      if (!refused) EXPECT_EQ(std::pair(part, bit), std::pair(size_t{99}, size_t{99}));
      bytes[bit / 8] ^= static_cast<char>(1 << bit % 8);
    }
  }
}

TEST(parts_that_are_cut_off_are_refused) {
  const Parts image = minimal();
  for (size_t part = 0; part < Parts::kCount; ++part) {
    for (const size_t length : {size_t{0}, size_t{1}, size_t{8}, size_t{60}, page_size() - 1}) {
      Parts cut = image;
      cut.all()[part].resize(length);
      EXPECT(!read(cut).ok());
    }
  }
}

// With right checksums.
TEST(impossible_values_are_refused) {
  const auto resealed = [](Parts parts) {
    put(parts.header, 44, crc_of(parts.metadata));
    put(parts.header, 16, uint32_t{0});
    put(parts.header, 16, crc_of(parts.header));
    return parts;
  };
  const auto refuses = [&](auto change, ErrorCode code = ErrorCode::kSnapshotCorrupt) {
    Parts parts = minimal();
    change(parts);
    parts = resealed(std::move(parts));
    const auto header = image::decode_header(parts.header);
    if (!header.ok()) return header.status().code() == code;
    const auto metadata = image::decode_metadata(*header, parts.metadata);
    return !metadata.ok() && metadata.status().code() == code;
  };
  EXPECT(!refuses([](Parts&) {}));
  EXPECT(refuses([](Parts& p) { put(p.header, 8, uint32_t{0}); }, ErrorCode::kSnapshotVersion));
  EXPECT(refuses([](Parts& p) { put(p.header, 8, uint32_t{3}); }, ErrorCode::kSnapshotVersion));
  // Version 2 is for images with huge pages, and no other.
  EXPECT(refuses([](Parts& p) { put(p.header, 8, uint32_t{2}); }));
  EXPECT(refuses([](Parts& p) { put(p.metadata, 26, uint8_t{1}); }));
  const auto make_huge = [](Parts& p, uint8_t value) {
    put(p.header, 8, uint32_t{2});
    put(p.metadata, 26, value);
  };
  EXPECT(!refuses([&](Parts& p) { make_huge(p, 1); }));
  EXPECT(refuses([&](Parts& p) { make_huge(p, 2); }));
  EXPECT(refuses([](Parts& p) { put(p.header, 12, static_cast<uint32_t>(2 * page_size())); },
                 ErrorCode::kSnapshotVersion));
  EXPECT(refuses([](Parts& p) { put(p.header, 12, uint32_t{4095}); }));
  EXPECT(refuses([](Parts& p) { put(p.header, 24, uint64_t{1} << 63); }));
  EXPECT(refuses([](Parts& p) { put(p.header, 24, 2 * page_size()); }));  // usage goes beyond
  EXPECT(refuses([](Parts& p) { put(p.header, 32, UINT64_MAX); }));
  EXPECT(refuses([](Parts& p) { put(p.header, 40, uint32_t{2}); }));
  EXPECT(refuses([](Parts& p) { put(p.metadata, 0, uint64_t{1}); }));      // within a page
  EXPECT(refuses([](Parts& p) { put(p.metadata, 8, page_size()); }));      // empty
  EXPECT(refuses([](Parts& p) { put(p.metadata, 16, uint32_t{0}); }));     // no references
  EXPECT(refuses([](Parts& p) { put(p.metadata, 24, uint8_t{5}); }));      // kind
  EXPECT(refuses([](Parts& p) { put(p.metadata, 25, uint8_t{2}); }));      // committed
  EXPECT(refuses([](Parts& p) { put(p.metadata, 31, uint8_t{1}); }));      // padding
  EXPECT(refuses([](Parts& p) { put(p.metadata, 32, uint8_t{0xFF}); }));   // restore_id
  EXPECT(refuses([](Parts& p) { put(p.metadata, 38, UINT64_MAX - 2); }));  // payload
  EXPECT(refuses([](Parts& p) { put(p.metadata, 38, uint64_t{3}); }));     // surplus byte
}

TEST(bytes_that_no_table_names_are_zero) {
  const Parts parts = minimal();
  const auto header = image::decode_header(parts.header);
  const auto sealed = [](std::string page, size_t at, size_t crc) {
    page[at] = 1;
    put(page, crc, uint32_t{0});
    put(page, crc, crc_of(page));
    return page;
  };
  for (const size_t at : {size_t{56}, page_size() - 1}) {
    EXPECT(!image::decode_header(sealed(parts.header, at, 16)).ok());
  }
  for (const size_t at : {size_t{48}, size_t{192}, page_size() - 1}) {
    EXPECT(!image::decode_extent_head(*header, sealed(parts.head, at, 4), 2 * page_size()).ok());
  }
  for (const size_t at : {size_t{60}, size_t{64}, page_size() - 1}) {
    EXPECT(!image::decode_trailer(*header, sealed(parts.trailer, at, 56), 0).ok());
  }
}

TEST(data_belongs_to_pages_in_use) {
  image::ExtentHead head{.range = pages(0, 8)};
  const auto all_used = [&](std::vector<image::Usage> usage) {
    return image::check_extent_usage(head, usage).ok();
  };
  head.map.set(2);
  head.map.set(3);
  head.map.set(6);
  EXPECT(all_used({{pages(0, 8)}}));
  EXPECT(all_used({{pages(2, 3)}, {pages(3, 4)}, {pages(6, 7)}}));
  EXPECT(!all_used({}));
  EXPECT(!all_used({{pages(0, 3)}, {pages(6, 8)}}));
  EXPECT(!all_used({{pages(0, 4)}, {pages(7, 8)}}));
  EXPECT(!all_used({{pages(3, 7)}}));
}

// --- Parts of the format -------------------------------------------------------------------------

TEST(page_maps_know_their_runs) {
  PageMap map;
  const auto runs = [&] {
    std::vector<std::pair<size_t, size_t>> found;
    map.visit_runs([&](size_t first, size_t count) { found.emplace_back(first, count); });
    return found;
  };
  using Runs = std::vector<std::pair<size_t, size_t>>;
  EXPECT_EQ(runs(), Runs{});
  for (const size_t page : {0, 1, 62, 63, 64, 127, 128, 1023}) map.set(page);
  EXPECT_EQ(runs(), (Runs{{0, 2}, {62, 3}, {127, 2}, {1023, 1}}));
  EXPECT_EQ(map.count(), 8u);
  EXPECT(map.test(63) && !map.test(65));
  EXPECT_EQ(map.next_set(129), 1023u);
  EXPECT_EQ(map.next_clear(1023), PageMap::kPages);
  EXPECT_EQ(map.next_set(PageMap::kPages), PageMap::kPages);
  for (size_t page = 0; page < PageMap::kPages; ++page) map.set(page);
  EXPECT_EQ(runs(), (Runs{{0, PageMap::kPages}}));
}

TEST(utf8_is_what_python_takes_for_it) {
  using image::is_utf8;
  for (const char* good : {"", "a", "\u00e9", "\u20ac", "\U0001F600", "\x7F", "\xC2\x80",
                           "\xED\x9F\xBF", "\xEE\x80\x80", "\xF4\x8F\xBF\xBF"}) {
    EXPECT(is_utf8(good));
  }
  for (const char* bad :
       {"\x80", "\xC0\x80", "\xC1\xBF", "\xC3", "\xE0\x9F\xBF", "\xE2\x82", "\xED\xA0\x80",
        "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "a\xFF", "\xC3\x28"}) {
    EXPECT(!is_utf8(bad));
  }
}

}  // namespace
}  // namespace pgalloc::image_test
