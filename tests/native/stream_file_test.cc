// Files that take or give bytes in order only.

#include "imageio/stream_file.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "native/rig.h"

namespace pgalloc::stream_file_test {
namespace {

using native_tests::FakeKernel;
using native_tests::in_a_minute;
using native_tests::kPast;

struct Pipe {
  Pipe() { EXPECT(::pipe2(ends, O_NONBLOCK | O_CLOEXEC) == 0); }
  ~Pipe() {
    for (const int end : ends) ::close(end);
  }
  void fill() const {
    const std::string bytes(4096, 'x');
    while (::write(ends[1], bytes.data(), bytes.size()) > 0) {
    }
  }
  int ends[2] = {-1, -1};
};

TEST(a_device_is_opened_and_nothing_is_made) {
  const auto fd = open_stream("/dev/null");
  EXPECT(fd.ok());
  EXPECT((::fcntl(*fd, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_WRONLY | O_NONBLOCK));
  ::close(*fd);
  EXPECT_EQ(open_stream("/dev/no such device").status().error_number(), ENOENT);
  EXPECT_EQ(open_stream("/dev").status().error_number(), EISDIR);
}

TEST(a_pipe_is_waited_for) {
  const Pipe pipe;
  EXPECT(*wait_for_stream(pipe.ends[1], StreamEvent::kWritable, in_a_minute()));
  EXPECT(!*wait_for_stream(pipe.ends[0], StreamEvent::kReadable, kPast));
  pipe.fill();
  EXPECT(!*wait_for_stream(pipe.ends[1], StreamEvent::kWritable, kPast));
  EXPECT(*wait_for_stream(pipe.ends[0], StreamEvent::kReadable, in_a_minute()));
}

TEST(what_will_fail_is_not_waited_for) {
  const Pipe pipe;
  pipe.fill();
  ::close(pipe.ends[0]);
  EXPECT(*wait_for_stream(pipe.ends[1], StreamEvent::kWritable, in_a_minute()));
  EXPECT(*wait_for_stream(pipe.ends[0], StreamEvent::kReadable, in_a_minute()));  // it is closed
}

TEST(a_signal_is_no_error_and_no_event) {
  const Pipe pipe;
  FakeKernel fake;
  static int error;
  fake.calls.poll = [](struct pollfd*, nfds_t, int) { return errno = error, -1; };
  fake.begin();
  error = EINTR;
  EXPECT(!*wait_for_stream(pipe.ends[1], StreamEvent::kWritable, in_a_minute()));
  error = EIO;
  EXPECT_EQ(wait_for_stream(pipe.ends[1], StreamEvent::kWritable, kPast).status().error_number(),
            EIO);
}

}  // namespace
}  // namespace pgalloc::stream_file_test
