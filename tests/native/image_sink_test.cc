// Bytes that are handed from one thread to another.

#include "imageio/image_sink.h"

#include <atomic>
#include <thread>

#include "native/rig.h"

namespace pgalloc::image_sink_test {
namespace {

using native_tests::in_a_minute;
using native_tests::kPast;
using State = StreamSink::State;

// What comes, until the end or so many blocks.
std::vector<std::string> taken(StreamSink& sink, size_t most = SIZE_MAX) {
  std::vector<std::string> blocks;
  std::span<const char> bytes;
  while (blocks.size() < most && sink.wait(in_a_minute(), &bytes) == State::kBytes) {
    blocks.emplace_back(bytes.begin(), bytes.end());
    sink.take_done();
  }
  return blocks;
}

TEST(a_reader_gets_in_order_what_was_written) {
  StreamSink sink;
  EXPECT(!sink.random_access());
  bool written = true;
  std::thread writer([&] {
    for (const char* bytes : {"one", "two", "three"}) {
      written = sink.write(0, std::string(bytes)).ok() && written;
    }
    (void)sink.finish();
  });
  EXPECT_EQ(taken(sink), (std::vector<std::string>{"one", "two", "three"}));
  writer.join();
  EXPECT(written);
  std::span<const char> bytes;
  EXPECT(sink.wait(kPast, &bytes) == State::kEnd);
}

TEST(what_is_kept_waits_for_nobody) {
  StreamSink sink;
  sink.keep();
  EXPECT(sink.write(0, std::string("one")).ok() && sink.write(3, std::string("two")).ok());
  EXPECT_EQ(sink.take_kept(), "onetwo");
  EXPECT_EQ(sink.take_kept(), "");
  EXPECT(sink.write(6, std::string("three")).ok() && sink.finish().ok());
  EXPECT_EQ(sink.take_kept(), "three");
}

TEST(long_bytes_come_in_blocks) {
  constexpr size_t kBlock = 8 << 20;
  for (const size_t surplus : {0, 1}) {
    StreamSink sink;
    const std::string all(kBlock + surplus, 'x');
    std::thread writer([&] {
      (void)sink.write(0, all);
      (void)sink.finish();
    });
    std::vector<size_t> sizes;
    for (const std::string& block : taken(sink)) sizes.push_back(block.size());
    EXPECT_EQ(sizes, surplus == 0 ? std::vector<size_t>{kBlock} : (std::vector<size_t>{kBlock, 1}));
    writer.join();
  }
}

TEST(without_bytes_a_reader_waits_as_long_as_it_wants) {
  StreamSink sink;
  std::span<const char> bytes;
  EXPECT(sink.wait(kPast, &bytes) == State::kNothingYet);
  EXPECT(sink.write(0, {}).ok());  // nothing to wait for
}

TEST(a_save_that_is_given_up_keeps_bytes_that_are_looked_at) {
  StreamSink sink;
  std::atomic<bool> returned = false;
  Status status;
  std::thread writer([&] {
    status = sink.write(0, std::string("kept"));
    returned = true;
  });
  std::span<const char> bytes;
  EXPECT(sink.wait(in_a_minute(), &bytes) == State::kBytes);
  sink.cancel();
  EXPECT(std::string(bytes.begin(), bytes.end()) == "kept");
  EXPECT(!returned);  // or the bytes would be gone
  sink.take_done();
  writer.join();
  EXPECT(status.code() == ErrorCode::kSnapshot);
  EXPECT(sink.wait(kPast, &bytes) == State::kEnd);
  EXPECT(!sink.write(0, std::string("more")).ok());
}

}  // namespace
}  // namespace pgalloc::image_sink_test
