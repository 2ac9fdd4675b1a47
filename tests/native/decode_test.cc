// Images whose checksums fit, one step inside and one step outside of what the format allows.

#include "image/decode.h"

#include <cstring>
#include <functional>
#include <string>

#include "base/crc32c.h"
#include "image/checks.h"
#include "image/encode.h"
#include "image/layout.h"
#include "native/support.h"

namespace pgalloc::decode_test {
namespace {

namespace layout = image::layout;
using image::Encoding;
using native_tests::pages;

// Whether this and nothing else is wrong with it.
bool fails(const Status& status, const char* what) {
  if (!status.ok() && status.message().find(what) != std::string::npos) return true;
  std::cerr << "    " << (status.ok() ? "accepted" : status.message()) << "\n";
  return false;
}

// A structure at the beginning of a page of its own, with the right checksum.
template <class Layout>
std::string sealed(Layout fields, std::string page = std::string(page_size(), '\0')) {
  fields.crc = 0;
  std::memcpy(page.data(), &fields, sizeof fields);
  fields.crc = crc32c(page.data(), page.size());
  std::memcpy(page.data(), &fields, sizeof fields);
  return page;
}

// --- Front ---------------------------------------------------------------------------------------

Status header_with(const std::function<void(layout::Header&)>& change) {
  layout::Header fields{layout::kHeaderMagic,
                        image::kVersionMin,
                        static_cast<uint32_t>(page_size()),
                        0,
                        0,
                        4 * page_size(),
                        0,
                        0,
                        0,
                        1 << 20};
  change(fields);
  const auto header = image::decode_header(sealed(fields));
  return header.ok() ? Status() : header.status().clone();
}

TEST(a_header_announces_no_more_than_the_format_allows) {
  using Header = layout::Header;
  EXPECT(header_with([](Header& h) { h.file_size = align_down(kMaxOffset, page_size()); }).ok());
  EXPECT(fails(header_with([](Header& h) { h.file_size = uint64_t{1} << 63; }), "file size"));
  EXPECT(fails(header_with([](Header& h) { h.file_size += 1; }), "file size"));
  EXPECT(header_with([](Header& h) { h.restore_id_length = 65536; }).ok());
  EXPECT(fails(header_with([](Header& h) { h.restore_id_length = 65537; }), "restore_id too long"));
  EXPECT(header_with([](Header& h) { h.hook_count = 65536; }).ok());
  EXPECT(fails(header_with([](Header& h) { h.hook_count = 65537; }), "too many hooks"));
  EXPECT(header_with([](Header& h) { h.metadata_length = uint64_t{1} << 30; }).ok());
  EXPECT(fails(header_with([](Header& h) { h.metadata_length = (uint64_t{1} << 30) + 1; }),
               "metadata too long"));
}

TEST(a_headers_metadata_hold_what_it_counts) {
  using Header = layout::Header;
  const auto usage = [](uint64_t count) {
    return header_with([=](Header& h) { h.usage_count = count, h.metadata_length = 96; });
  };
  EXPECT(usage(3).ok());
  EXPECT(fails(usage(4), "too short for the usage set"));
  EXPECT(fails(usage(UINT64_MAX), "too short for the usage set"));
  // A range, a restore_id of two bytes, and two hooks that take 13 bytes each at least.
  const auto parts = [](uint64_t length) {
    return header_with([=](Header& h) {
      h.usage_count = 1, h.restore_id_length = 2, h.hook_count = 2, h.metadata_length = length;
    });
  };
  EXPECT(parts(32 + 2 + 26).ok());
  EXPECT(fails(parts(32 + 2 + 25), "too short for its parts"));
}

// What decoding says of a file of ten pages with this usage and these hooks.
Status metadata_with(std::vector<image::Usage> usage, std::vector<image::Hook> hooks = {}) {
  image::Header header;
  const image::Metadata metadata{std::move(usage), "", std::move(hooks)};
  const std::string front = image::encode_front(10 * page_size(), metadata, &header);
  const auto decoded = image::decode_metadata(header, image::Bytes(front).subspan(page_size()));
  if (!decoded.ok()) return decoded.status().clone();
  EXPECT(*decoded == metadata);
  return {};
}

TEST(ranges_in_use_are_in_order_and_inside_the_file) {
  EXPECT(metadata_with({{pages(0, 2)}, {pages(2, 3)}, {pages(9, 10)}}).ok());
  EXPECT(fails(metadata_with({{pages(9, 11)}}), "beyond the file"));
  EXPECT(fails(metadata_with({{pages(0, 3)}, {pages(2, 4)}}), "entry 1 overlaps"));
  EXPECT(fails(metadata_with({{pages(2, 4)}, {pages(0, 2)}}), "entry 1 is out of order"));
  EXPECT(fails(metadata_with({{pages(2, 4)}, {pages(0, 4)}}), "entry 1 is out of order"));
  EXPECT(fails(metadata_with({{pages(3, 3)}}), "is empty"));
  EXPECT(fails(metadata_with({{{1, page_size()}}}), "starts within a page"));
  EXPECT(fails(metadata_with({{{0, page_size() + 1}}}), "ends within a page"));
}

TEST(pages_in_use_have_a_reference_and_a_kind) {
  EXPECT(metadata_with({{pages(0, 1), 1, UINT32_MAX, MemoryKind::kTmpfs, true}}).ok());
  EXPECT(metadata_with({{pages(0, 1), UINT32_MAX, 0, MemoryKind::kSystem, false}}).ok());
  EXPECT(fails(metadata_with({{pages(0, 1), 0}}), "has no references"));
  EXPECT(fails(metadata_with({{pages(0, 1), 1, 0, MemoryKind::kMapped}}), "unknown kind"));
}

TEST(hooks_have_names_of_their_own) {
  EXPECT(metadata_with({}, {{"a", ""}, {"b", "same"}, {"c", "same"}}).ok());
  EXPECT(metadata_with({}, {{std::string(255, 'a'), std::string(10'000, 'p')}}).ok());
  EXPECT(
      fails(metadata_with({}, {{"a", ""}, {"b", ""}, {"a", ""}}), "two hooks have the name 'a'"));
  EXPECT(fails(metadata_with({}, {{"\xFF", ""}}), "not UTF-8"));
}

// One hook in so many bytes of metadata.
Status hook_of(uint32_t name_length, uint64_t payload_length, uint64_t metadata_length) {
  std::string bytes(align_up(metadata_length, page_size()), '\0');
  std::memcpy(bytes.data(), &name_length, sizeof name_length);
  std::memcpy(bytes.data() + sizeof name_length, &payload_length, sizeof payload_length);
  std::memset(bytes.data() + layout::kHookPrefixSize, 'n',
              metadata_length - layout::kHookPrefixSize);
  const image::Header header{.hook_count = 1,
                             .metadata_length = metadata_length,
                             .metadata_crc = crc32c(bytes.data(), bytes.size())};
  const auto decoded = image::decode_metadata(header, bytes);
  return decoded.ok() ? Status() : decoded.status().clone();
}

TEST(a_hook_ends_with_the_metadata) {
  EXPECT(hook_of(3, 4, 12 + 7).ok());
  EXPECT(hook_of(7, 0, 12 + 7).ok());
  EXPECT(fails(hook_of(3, 5, 12 + 7), "goes beyond the metadata"));
  EXPECT(fails(hook_of(8, 0, 12 + 7), "goes beyond the metadata"));
  EXPECT(fails(hook_of(3, UINT64_MAX - 1, 12 + 7), "goes beyond the metadata"));
  EXPECT(fails(hook_of(3, 3, 12 + 7), "surplus bytes"));
  EXPECT(fails(hook_of(0, 7, 12 + 7), "has no name"));
  EXPECT(hook_of(255, 1, 12 + 256).ok());
  EXPECT(fails(hook_of(256, 0, 12 + 256), "too long a name"));
  const image::Header header{.hook_count = 2};
  EXPECT(!image::decode_metadata(header, {}).ok());
}

// --- Extents -------------------------------------------------------------------------------------

constexpr uint64_t kSpan = image::kExtentSpan;

image::Header header_of_file(uint64_t file_size) {
  image::Header header;
  image::encode_front(file_size, {}, &header);
  return header;
}

// What the index says of the only extent of a file of 8 MiB.
Status entry_with(FileRange range, uint32_t stored_pages, uint64_t stored_length,
                  Encoding encoding = Encoding::kRaw) {
  const image::Header header = header_of_file(2 * kSpan);
  const image::IndexEntry entry{range,         header.first_extent(), encoding,
                                stored_length, stored_pages,          0};
  const std::string back = image::encode_back(header, {&entry, 1}, entry.end(), 0);
  const auto trailer = image::decode_trailer(header, image::Bytes(back).last(page_size()), 0);
  if (!trailer.ok()) return trailer.status().clone();
  const auto index =
      image::decode_index(header, *trailer, image::Bytes(back).first(back.size() - page_size()));
  if (!index.ok()) return index.status().clone();
  EXPECT(index->front() == entry);
  return {};
}

TEST(an_extent_is_within_the_file_and_the_grid) {
  const uint64_t page = page_size();
  EXPECT(entry_with({0, kSpan}, 1, page).ok());
  EXPECT(entry_with({kSpan, 2 * kSpan}, 1, page).ok());
  EXPECT(entry_with({kSpan - page, kSpan}, 1, page).ok());
  EXPECT(entry_with({2 * kSpan - page, 2 * kSpan}, 1, page).ok());
  EXPECT(fails(entry_with({kSpan - page, kSpan + page}, 1, page), "crosses a multiple"));
  EXPECT(fails(entry_with({0, kSpan + page}, 1, page), "too many pages"));
  EXPECT(fails(entry_with({2 * kSpan - page, 2 * kSpan + page}, 1, page), "beyond the file"));
  EXPECT(fails(entry_with({2 * kSpan, 2 * kSpan + page}, 1, page), "beyond the file"));
  EXPECT(fails(entry_with({1, page + 1}, 1, page), "starts within a page"));
  EXPECT(fails(entry_with({page, page}, 1, page), "stands for no page"));
}

TEST(an_extent_stores_some_of_its_pages_in_a_known_way) {
  const uint64_t page = page_size();
  EXPECT(entry_with(pages(0, 2), 2, 2 * page).ok());
  EXPECT(fails(entry_with(pages(0, 2), 3, 3 * page), "stores more pages"));
  EXPECT(fails(entry_with(pages(0, 2), 0, page), "stores no page"));
  EXPECT(fails(entry_with(pages(0, 2), 2, 2 * page - 1), "not the length of its pages"));
  EXPECT(fails(entry_with(pages(0, 2), 1, 2 * page), "not the length of its pages"));
  EXPECT(entry_with(pages(0, 2), 2, 1, Encoding::kZstd).ok());
  EXPECT(entry_with(pages(0, 2), 2, 2 * page - 1, Encoding::kZstd).ok());
  EXPECT(fails(entry_with(pages(0, 2), 2, 2 * page, Encoding::kZstd), "longer than its pages"));
  EXPECT(fails(entry_with(pages(0, 2), 2, page, static_cast<Encoding>(2)), "unknown encoding"));
}

// What a head says of five pages in a file of 8 MiB, of which the first is stored.
Status head_with(const std::function<void(layout::ExtentHead&)>& change) {
  layout::ExtentHead fields{layout::kExtentMagic, 0,           0,  5, 1, 0, 0,
                            page_size(),          page_size(), {}, {}};
  fields.map.set(0);
  change(fields);
  const auto head =
      image::decode_extent_head(header_of_file(2 * kSpan), sealed(fields), page_size());
  return head.ok() ? Status() : head.status().clone();
}

TEST(a_head_is_at_its_place_and_counts_the_pages_it_marks) {
  using Head = layout::ExtentHead;
  EXPECT(head_with([](Head&) {}).ok());
  EXPECT(head_with([](Head& h) {
           h.map.set(4), h.stored_pages = 2, h.stored_length = 2 * page_size();
         }).ok());
  EXPECT(fails(head_with([](Head& h) { h.map.set(4); }), "does not store the pages it counts"));
  EXPECT(fails(head_with([](Head& h) {
                 h.map.set(5), h.stored_pages = 2, h.stored_length = 2 * page_size();
               }),
               "stores pages beyond its end"));
  EXPECT(fails(head_with([](Head& h) { h.offset += page_size(); }), "belongs elsewhere"));
  EXPECT(fails(head_with([](Head& h) { h.encoding = 1, h.stored_length = 0; }), "has no frame"));
  EXPECT(fails(head_with([](Head& h) { h.magic.bytes[0] = 'Y'; }), "wrong magic"));
}

TEST(data_are_as_long_as_the_head_says_and_padded_with_zeros) {
  std::string data(page_size(), '\0');
  std::memset(data.data(), 'z', 100);
  image::ExtentHead head{.range = pages(0, 2),
                         .encoding = Encoding::kZstd,
                         .stored_length = 100,
                         .data_crc = crc32c(data.data(), data.size())};
  EXPECT(image::check_extent_data(head, data).ok());
  EXPECT(fails(image::check_extent_data(head, image::Bytes(data).first(100)), "no whole data"));
  EXPECT(fails(image::check_extent_data(head, data + data), "no whole data"));
  head.stored_length = 99;
  EXPECT(fails(image::check_extent_data(head, data), "padding"));
  head.stored_length = 100;
  ++head.data_crc;
  EXPECT(fails(image::check_extent_data(head, data), "wrong checksum"));
}

TEST(a_run_of_stored_pages_may_belong_to_several_ranges_in_use) {
  image::ExtentHead head{.range = pages(10, 18)};
  for (const size_t page : {2, 3, 4}) head.map.set(page);
  const auto used = [&](std::vector<image::Usage> usage) {
    return image::check_extent_usage(head, usage).ok();
  };
  EXPECT(used({{pages(0, 10)}, {pages(12, 13)}, {pages(13, 15)}, {pages(17, 20)}}));
  EXPECT(used({{pages(12, 15)}}));
  EXPECT(!used({{pages(12, 14)}}));
  EXPECT(!used({{pages(13, 15)}}));
  EXPECT(!used({{pages(12, 13)}, {pages(14, 15)}}));
}

// --- Back ----------------------------------------------------------------------------------------

// The trailer of an image of six pages: header, one extent of two, a page of index; the file has four.
Status trailer_with(const std::function<void(layout::Trailer&)>& change, uint64_t image_size = 0) {
  const uint64_t page = page_size();
  image::Header header = header_of_file(4 * page);
  layout::Trailer fields{layout::kTrailerMagic, 3 * page, 1, 5 * page, 1, 0, 0, header.crc, 0, {}};
  change(fields);
  const auto trailer = image::decode_trailer(header, sealed(fields), image_size);
  return trailer.ok() ? Status() : trailer.status().clone();
}

TEST(a_trailers_places_fit_together) {
  using Trailer = layout::Trailer;
  const uint64_t page = page_size();
  EXPECT(trailer_with([](Trailer&) {}).ok());
  EXPECT(trailer_with([&](Trailer& t) {  // no extent at all
           t.index_offset = page, t.extent_count = 0, t.image_size = 3 * page, t.stored_pages = 0;
         })
             .ok());
  EXPECT(fails(trailer_with([&](Trailer& t) {
                 t.index_offset = 0, t.extent_count = 0, t.image_size = 2 * page;
               }),
               "before the first extent"));
  EXPECT(fails(trailer_with([](Trailer& t) { ++t.index_offset; }), "within a page"));
  EXPECT(
      fails(trailer_with([](Trailer& t) { t.image_size = t.index_offset; }), "behind the image"));
  EXPECT(fails(trailer_with([](Trailer& t) { t.extent_count = 2; }), "there is room for"));
  EXPECT(fails(trailer_with([](Trailer& t) { t.extent_count = UINT64_MAX; }), "there is room for"));
  for (const uint64_t size : {4 * page, 6 * page}) {
    EXPECT(fails(trailer_with([=](Trailer& t) { t.image_size = size; }), "where they should"));
  }
}

TEST(a_trailer_belongs_to_its_image) {
  using Trailer = layout::Trailer;
  EXPECT(trailer_with([](Trailer&) {}, 5 * page_size()).ok());
  EXPECT(fails(trailer_with([](Trailer&) {}, 6 * page_size()), "another size"));
  EXPECT(fails(trailer_with([](Trailer&) {}, 1), "another size"));
  EXPECT(fails(trailer_with([](Trailer& t) { ++t.header_crc; }), "another header"));
  EXPECT(fails(trailer_with([](Trailer& t) { t.magic.bytes[7] = 0; }), "wrong magic"));
}

TEST(a_trailer_counts_no_more_pages_than_the_file_has) {
  const auto pages_of = [](uint64_t stored, uint64_t zero) {
    return trailer_with(
        [=](layout::Trailer& t) { t.stored_pages = stored, t.zero_pages_skipped = zero; });
  };
  EXPECT(pages_of(4, 0).ok());
  EXPECT(pages_of(0, 4).ok());
  EXPECT(pages_of(1, 3).ok());
  for (const auto& [stored, zero] : std::vector<std::pair<uint64_t, uint64_t>>{
           {5, 0}, {0, 5}, {2, 3}, {4, 1}, {UINT64_MAX, 0}, {0, UINT64_MAX}, {3, UINT64_MAX - 1}}) {
    EXPECT(fails(pages_of(stored, zero), "more pages than the file has"));
  }
}

// Two extents of two pages each, of which the first is stored.
struct Back {
  image::Header header = header_of_file(8 * page_size());
  image::IndexEntry entries[2] = {
      {pages(0, 2), page_size(), Encoding::kRaw, page_size(), 1, 0},
      {pages(2, 4), 3 * page_size(), Encoding::kRaw, page_size(), 1, 0},
  };
  uint64_t offset = 5 * page_size();  // of the index
  std::function<void(std::string&)> damage = [](std::string&) {};
  std::function<void(layout::Trailer&)> change = [](layout::Trailer&) {};

  Status decode() const {
    const std::string back = image::encode_back(header, entries, offset, 0);
    std::string index = back.substr(0, back.size() - page_size());
    auto fields = image::load<layout::Trailer>(image::Bytes(back).last(page_size()));
    damage(index);
    fields.index_crc = crc32c(index.data(), index.size());
    change(fields);
    const auto trailer = image::decode_trailer(header, sealed(fields), 0);
    if (!trailer.ok()) return trailer.status().clone();
    const auto decoded = image::decode_index(header, *trailer, index);
    if (!decoded.ok()) return decoded.status().clone();
    EXPECT((*decoded)[0] == entries[0] && (*decoded)[1] == entries[1]);
    return {};
  }
};

TEST(extents_are_in_order_and_leave_no_bytes_between) {
  EXPECT(Back().decode().ok());
  Back back;
  back.entries[1].range = pages(1, 3);
  EXPECT(fails(back.decode(), "entry 1 of the image's index overlaps"));
  back.entries[1].range = pages(0, 2);
  EXPECT(fails(back.decode(), "entry 1 of the image's index is out of order"));
  back.entries[1].range = pages(5, 8);
  EXPECT(back.decode().ok());

  back = {};
  back.entries[1].offset += page_size();
  back.offset += page_size();
  EXPECT(fails(back.decode(), "does not begin where the one before it ends"));
  back = {};
  back.offset += page_size();
  EXPECT(fails(back.decode(), "bytes between the extents and the index"));
  back = {};
  back.entries[1].stored_pages = 2;
  back.entries[1].stored_length = 2 * page_size();
  EXPECT(fails(back.decode(), "goes beyond the extents"));
  back.offset += page_size();
  EXPECT(back.decode().ok());
}

TEST(an_index_counts_what_the_trailer_counts) {
  Back back;
  back.change = [](layout::Trailer& t) { ++t.stored_pages; };
  EXPECT(fails(back.decode(), "counts other pages"));
  back.change = [](layout::Trailer& t) { ++t.index_crc; };
  EXPECT(fails(back.decode(), "wrong checksum"));
  back = {};
  back.damage = [](std::string& index) { index[8] = 1; };
  EXPECT(fails(back.decode(), "counts other extents"));
  back.damage = [](std::string& index) { index[0] = 'Y'; };
  EXPECT(fails(back.decode(), "wrong magic"));
  for (const size_t at :
       {size_t{4}, sizeof(layout::IndexFront) + 2 * sizeof(layout::IndexEntry), page_size() - 1}) {
    back.damage = [=](std::string& index) { index[at] = 1; };
    EXPECT(fails(back.decode(), "should be zero"));
  }
  back.damage = [](std::string& index) { index.pop_back(); };
  EXPECT(fails(back.decode(), "not all of it"));
}

TEST(an_index_begins_with_its_magic) {
  const std::string back = image::encode_back(header_of_file(0), {}, page_size(), 0);
  EXPECT(image::begins_index(back));
  EXPECT(image::begins_index(image::Bytes(back).first(sizeof(layout::IndexFront))));
  EXPECT(!image::begins_index(image::Bytes(back).first(sizeof(layout::IndexFront) - 1)));
  EXPECT_EQ(image::peek_extent_count(back), 0u);
}

}  // namespace
}  // namespace pgalloc::decode_test
