// What failures say, and where a broken invariant ends.

#include "base/status.h"

#include <errno.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "native/support.h"

namespace pgalloc::status_test {
namespace {

TEST(a_failure_is_described_by_its_message_or_its_call) {
  const Status error = Status::error(ErrorCode::kRange, "too long");
  EXPECT_EQ(error.describe(), "too long");
  EXPECT_EQ(error.error_number(), 0);
  const Status system = Status::system_error(ENOENT, "open");
  EXPECT_EQ(system.describe(), "open: No such file or directory");
  EXPECT(system.code() == ErrorCode::kSystem);
}

TEST(a_clone_says_the_same) {
  EXPECT(Status().clone().ok());
  const Status copy = Status::system_error(ENOMEM, "mmap").clone();
  EXPECT(!copy.ok() && copy.code() == ErrorCode::kSystem);
  EXPECT_EQ(copy.error_number(), ENOMEM);
  EXPECT_EQ(std::string(copy.call()), "mmap");
}

// The signal that ends a child which does this.
template <class Act>
int ended_by(Act act) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(STDERR_FILENO);
    act();
    ::_exit(0);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

TEST(a_broken_invariant_ends_the_process) {
  EXPECT_EQ(ended_by([] { PGALLOC_CHECK(true); }), 0);
  EXPECT_EQ(ended_by([] { PGALLOC_CHECK(false); }), SIGABRT);
  EXPECT_EQ(ended_by([] { PGALLOC_CHECK_OP(1, <, 2); }), 0);
  EXPECT_EQ(ended_by([] { PGALLOC_CHECK_OP(2, <, 2); }), SIGABRT);
}

}  // namespace
}  // namespace pgalloc::status_test
