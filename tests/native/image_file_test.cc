// An image in a file, of which nothing is believed before it was checked.

#include "imageio/image_file.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <climits>

#include "native/some_image.h"

namespace pgalloc::image_file_test {
namespace {

using native_tests::FakeKernel;
using native_tests::pages;
using native_tests::SomeImage;

class File {
 public:
  explicit File(const std::string& bytes) {
    EXPECT_EQ(::pwrite(fd_, bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  }
  ~File() { ::close(fd_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int fd() const { return fd_; }
  Result<std::shared_ptr<const ImageFile>> open() const {
    return ImageFile::open_path("/proc/self/fd/" + std::to_string(fd_));
  }
  Result<std::shared_ptr<const ImageFile>> open_at(size_t offset) const {
    return ImageFile::open_duplicate(fd_, offset);
  }
  bool fails(const char* what) const {
    const auto image = open();
    return !image.ok() && image.status().message().find(what) != std::string::npos;
  }

 private:
  const int fd_ = ::memfd_create("", MFD_CLOEXEC);
};

TEST(every_extent_can_be_read_in_any_order) {
  for (const uint64_t extents : {0, 1, 5, 103}) {  // 103 need two pages of index
    const SomeImage some(extents);
    const File file(some.bytes);
    const auto image = std::move(*file.open());
    EXPECT_EQ(image->size(), some.bytes.size());
    EXPECT(image->metadata() == some.metadata);
    EXPECT(image->index() == some.index);
    EXPECT_EQ(image->trailer().extent_count, extents);
    EXPECT(!image->has_encoded_extents());
    Buffer buffer;
    for (uint64_t i = extents; i-- > 0;) {
      const auto head = image->read_extent(i, buffer);
      EXPECT(head.ok() && head->range == some.index[i].range);
      EXPECT(std::string(buffer.data() + page_size(), page_size()) ==
             std::string(page_size(), SomeImage::letter(i)));
    }
  }
}

TEST(the_extent_of_a_page_or_the_next_one_is_found) {
  const SomeImage some(4);  // of pages 0, 2, 4, 6
  const File file(some.bytes);
  const auto image = std::move(*file.open());
  for (const auto& [page, found] :
       std::vector<std::pair<uint64_t, size_t>>{{0, 0}, {1, 1}, {2, 1}, {6, 3}, {7, 4}, {99, 4}}) {
    EXPECT_EQ(image->first_extent_after(page * page_size()), found);
  }
  EXPECT_EQ(image->first_extent_after(page_size() - 1), 0u);
}

TEST(parts_longer_than_a_piece_are_read_whole) {
  const SomeImage some(1, {{}, "id", {{"hook", std::string((2 << 20) + 5, 'p')}}});
  const File file(some.bytes);
  EXPECT((*file.open())->metadata() == some.metadata);
  std::string damaged = some.bytes;
  damaged[page_size() + (2 << 20)] ^= 1;
  EXPECT(File(damaged).fails("the image's metadata: wrong checksum"));
}

TEST(metadata_that_announce_more_than_the_file_has_cost_nothing) {
  const SomeImage some(0, {{}, "id", {{"hook", std::string(10 * page_size(), 'p')}}});
  // Header and metadata, and a page each for index and trailer, are the least.
  const size_t least = some.front + 2 * page_size();
  EXPECT_EQ(some.bytes.size(), least);
  for (const size_t size : {least - page_size(), 3 * page_size(), 3 * page_size() - 1}) {
    EXPECT(File(some.bytes.substr(0, size)).fails("ends before its metadata"));
  }
  EXPECT(File(some.bytes).open().ok());
}

TEST(what_was_cut_off_or_added_to_is_refused) {
  const SomeImage some(2);
  for (const size_t size : {size_t{0}, size_t{7}, size_t{100}, page_size() - 1}) {
    EXPECT(!File(some.bytes.substr(0, size)).open().ok());
  }
  EXPECT(File(some.bytes.substr(0, some.bytes.size() - 1)).fails("whole pages"));
  EXPECT(File(some.bytes + "x").fails("whole pages"));
  EXPECT(File(some.bytes.substr(0, some.bytes.size() - page_size())).fails("trailer"));
  EXPECT(File(some.bytes + std::string(page_size(), '\0')).fails("trailer"));
}

TEST(damage_to_an_extent_is_told_by_who_reads_it) {
  const SomeImage some(2);
  for (const size_t at : {size_t{0}, size_t{8}, page_size(), 2 * page_size() - 1}) {
    std::string damaged = some.bytes;
    damaged[some.index[1].offset + at] ^= 1;
    const File file(damaged);
    const auto image = std::move(*file.open());
    Buffer buffer;
    EXPECT(image->read_extent(0, buffer).ok());
    EXPECT(image->read_extent(1, buffer).status().code() == ErrorCode::kSnapshotCorrupt);
  }
}

TEST(damage_to_the_index_is_told_at_once) {
  const SomeImage some(103);
  std::string damaged = some.bytes;
  damaged[some.index.back().end() + page_size()] ^= 1;
  EXPECT(File(damaged).fails("the image's index: wrong checksum"));
}

TEST(an_image_that_becomes_shorter_is_an_error) {
  const SomeImage some(2);
  const File file(some.bytes);
  const auto image = std::move(*file.open());
  EXPECT(::ftruncate(file.fd(), static_cast<off_t>(some.index[1].end() - 1)) == 0);
  Buffer buffer;
  EXPECT(image->read_extent(0, buffer).ok());
  EXPECT(image->read_extent(1, buffer).status().message().find("shorter") != std::string::npos);
}

TEST(a_file_that_got_the_number_of_an_image_is_not_read) {
  const SomeImage some(3);
  const File file(some.bytes);
  const File others(some.bytes);
  const int number = ::dup(file.fd());
  ::close(number);
  auto image = std::move(*file.open());  // it has the lowest number that is free
  EXPECT_EQ(::dup2(others.fd(), number), number);
  Buffer buffer;
  EXPECT_EQ(image->read_extent(0, buffer).status().error_number(), EBADF);
  image.reset();
  EXPECT_EQ(::close(number), 0);
}

TEST(one_encoded_extent_is_enough_to_need_a_decoder) {
  SomeImage some(2);
  some.reopen();
  const std::string frame(page_size(), 'z');
  image::ExtentHead head{.range = pages(4, 6),
                         .offset = some.bytes.size(),
                         .encoding = image::Encoding::kZstd,
                         .stored_length = frame.size(),
                         .data_crc = crc32c(frame.data(), frame.size())};
  head.map.set(0);
  head.map.set(1);
  std::string page(page_size(), '\0');
  image::encode_extent_head(&head, page.data());
  some.bytes += page + frame;
  some.index.push_back(image::index_entry(head));
  some.end();
  const File file(some.bytes);
  EXPECT((*file.open())->has_encoded_extents());
}

TEST(only_regular_files_are_images) {
  int ends[2];
  EXPECT(::pipe(ends) == 0);
  EXPECT(ImageFile::open_duplicate(ends[0], 0).status().code() == ErrorCode::kOption);
  ::close(ends[0]);
  ::close(ends[1]);
  EXPECT(!ImageFile::open_duplicate(-1, 0).ok());
  EXPECT_EQ(ImageFile::open_path("/no/image").status().error_number(), ENOENT);
  EXPECT(ImageFile::open_path("/proc/self").status().code() == ErrorCode::kOption);
}

TEST(a_file_whose_size_is_not_told_is_no_image) {
  const SomeImage some(1);
  const File file(some.bytes);
  EXPECT(file.open().ok());
  FakeKernel fake;
  fake.calls.fstat = [](int, struct stat*) { return errno = EIO, -1; };
  fake.begin();
  EXPECT_EQ(file.open().status().error_number(), EIO);
  EXPECT_EQ(file.open_at(0).status().error_number(), EIO);
}

TEST(images_follow_each_other_in_a_file) {
  std::string all = "head";
  std::vector<std::pair<size_t, SomeImage>> images;
  for (const uint64_t extents : {0, 1, 103, 2}) {
    images.emplace_back(all.size(), SomeImage(extents));
    all += images.back().second.bytes;
  }
  for (const char* tail : {"", "tail"}) {
    const File file(all + tail);
    for (const auto& [at, some] : images) {
      const auto opened = file.open_at(at);
      EXPECT(opened.ok());
      const ImageFile& image = **opened;
      EXPECT_EQ(image.size(), some.bytes.size());
      EXPECT(image.index() == some.index);
      Buffer buffer;
      for (size_t i = 0; i < some.index.size(); ++i) {
        EXPECT(image.read_extent(i, buffer).ok());
        EXPECT_EQ(buffer.data()[page_size()], SomeImage::letter(i));
      }
    }
    EXPECT(file.open_at(0).status().code() == ErrorCode::kSnapshotCorrupt);
    EXPECT(file.open_at(all.size() + 9).status().code() == ErrorCode::kSnapshotCorrupt);
  }
}

// The first image of two, with a byte changed.
std::string refused(const SomeImage& some, size_t at) {
  std::string bytes = some.bytes + some.bytes;
  bytes[at] ^= 1;
  const auto image = File(bytes).open_at(0);
  return image.ok() ? "" : image.status().message();
}

TEST(what_leads_to_the_end_of_an_image_is_checked) {
  const SomeImage some(2);
  const auto says = [&](size_t at, const char* what) {
    return refused(some, at).find(what) != std::string::npos;
  };
  const size_t index = some.index.back().end();
  EXPECT(says(some.index[0].offset, "wrong magic"));
  EXPECT(says(some.index[1].offset + 16, "head with a wrong checksum"));
  EXPECT(says(index, "wrong magic"));
  EXPECT(says(index + 8, "ends before its index"));  // the number of extents
  EXPECT(says(index + 20, "index: wrong checksum"));
  EXPECT(says(index + page_size(), "trailer"));
  const File cut(some.bytes.substr(0, some.bytes.size() - page_size()));
  EXPECT(cut.open_at(0).status().message().find("ends before its index") != std::string::npos);
}

}  // namespace
}  // namespace pgalloc::image_file_test
