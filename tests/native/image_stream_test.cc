// An image that comes in order, fed as it asks for it.

#include "imageio/image_stream.h"

#include <string>

#include "native/some_image.h"

namespace pgalloc::image_stream_test {
namespace {

using native_tests::pages;
using Image = native_tests::SomeImage;

// Feeds all of it. `see` is called after each step.
template <class See>
Status feed(ImageStream& stream, const std::string& bytes, See see) {
  while (const size_t wanted = stream.wanted()) {
    if (stream.offset() + wanted > bytes.size()) {
      return Status::error(ErrorCode::kSnapshotCorrupt, "wants more than there is");
    }
    PGALLOC_RETURN_IF_ERROR(stream.feed({bytes.data() + stream.offset(), wanted}));
    see();
  }
  return {};
}
Status feed(const std::string& bytes) {
  ImageStream stream;
  return feed(stream, bytes, [] {});
}
bool fails(const Status& status, const char* what) {
  return !status.ok() && status.message().find(what) != std::string::npos;
}

TEST(every_extent_comes_with_its_data_and_the_index_at_last) {
  for (const uint64_t extents : {0, 1, 3, 102, 103, 300}) {  // 102 are a page of index
    const Image image(extents);
    ImageStream stream;
    std::vector<FileRange> came;
    const Status status = feed(stream, image.bytes, [&] {
      EXPECT_EQ(stream.has_metadata(), stream.offset() >= image.front);
      const image::ExtentHead* const extent = stream.extent();
      if (extent == nullptr) return;
      const std::string data(page_size(), Image::letter(came.size()));
      EXPECT(std::string(stream.data().begin(), stream.data().end()) == data);
      came.push_back(extent->range);
    });
    EXPECT(status.ok());
    EXPECT_EQ(stream.offset(), image.bytes.size());
    EXPECT_EQ(came.size(), extents);
    EXPECT(stream.index() == image.index);
    EXPECT_EQ(stream.trailer().extent_count, extents);
    EXPECT(stream.metadata() == image.metadata);
  }
}

TEST(an_image_of_an_empty_file_has_no_metadata) {
  image::Header header;
  std::string bytes = image::encode_front(0, {}, &header);
  EXPECT_EQ(bytes.size(), page_size());
  bytes += image::encode_back(header, {}, bytes.size(), 0);
  ImageStream stream;
  EXPECT(feed(stream, bytes, [&] { EXPECT(stream.has_metadata()); }).ok());
  EXPECT_EQ(stream.header().file_size, 0u);
}

TEST(long_metadata_are_asked_for_a_piece_at_a_time) {
  constexpr size_t kPiece = 1 << 20;
  const Image image(1, {{}, "id", {{"hook", std::string(2 * kPiece + 5, 'p')}}});
  ImageStream stream;
  EXPECT(stream.feed({image.bytes.data(), page_size()}).ok());
  for (const size_t wanted : {kPiece, kPiece, page_size()}) {
    EXPECT(!stream.has_metadata());
    EXPECT_EQ(stream.wanted(), wanted);
    EXPECT(stream.feed({image.bytes.data() + stream.offset(), wanted}).ok());
  }
  EXPECT(stream.has_metadata());
  EXPECT(stream.metadata() == image.metadata);
  EXPECT(feed(stream, image.bytes, [] {}).ok());
}

TEST(extents_follow_one_another) {
  Image image(2);
  image.reopen();
  image.add_extent(3);
  image.end();
  EXPECT(feed(image.bytes).ok());  // right behind the one before
  image.reopen();
  image.add_extent(3);
  image.end();
  EXPECT(fails(feed(image.bytes), "does not follow"));
}

TEST(the_index_is_of_the_extents_that_came) {
  Image image(3);
  image.reopen();
  image.index.pop_back();
  const std::string before = image.bytes;
  image.end();
  EXPECT(fails(feed(image.bytes), "another number of extents"));
  image.bytes = before;
  image.index.push_back({pages(4, 5), image.index[1].end(), image::Encoding::kRaw, page_size(), 1,
                         /*head_crc=*/7});
  image.end();
  EXPECT(fails(feed(image.bytes), "differs from the extents"));
}

TEST(damage_is_told_at_once) {
  const Image image(2);
  for (size_t at = 0; at < image.bytes.size(); at += 64) {
    std::string damaged = image.bytes;
    damaged[at] ^= 1;
    ImageStream stream;
    EXPECT(!feed(stream, damaged, [] {}).ok());
    // Whether it is an index is seen at once, what it says when the trailer has come.
    const bool within_index = at > image.front + 4 * page_size();
    const size_t judged = within_index ? image.bytes.size() / page_size() : at / page_size() + 1;
    EXPECT_EQ(stream.offset(), judged * page_size());
  }
}

}  // namespace
}  // namespace pgalloc::image_stream_test
